//! The look, shared by both sites.

use axum::response::Html;

/// A page, in the colour of the site that made it. `title`, `subtitle` and `body` are HTML.
pub(crate) fn page(site: &str, title: &str, subtitle: &str, body: &str) -> Html<String> {
    Html(format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content='width=device-width, initial-scale=1'><link rel=icon href=/favicon.ico>\
         <title>{title}</title><style>{CSS}</style>\
         <body class={site}><header>Made by the {site}</header><main><h1>{title}</h1><p class=subtitle>{subtitle}</p>{body}</main>"
    ))
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

/// A directory in a page.
pub(crate) const ICON: &str = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>\
    <rect width='16' height='16' rx='3' fill='#2456c7'/><path d='M3 5h4l1 1h5v6H3z' fill='#ffb26b'/></svg>";

const CSS: &str = "
    :root { color-scheme: light dark; --text: #1d2433; --faint: #545d70; --back: #f4f5f8; --page: #fff; --line: #dfe2ea;
        --code: #eff1f5; --front: #2456c7; --legacy: #a84a05;
        --front-bar: #2456c7; --legacy-bar: #a84a05 }
    @media (prefers-color-scheme: dark) {
        :root { --text: #e3e7ef; --faint: #a3adbf; --back: #12151b; --page: #1b1f28; --line: #343b49; --code: #272d39;
            --front: #8db0ff; --legacy: #ffb26b; --front-bar: #27489a; --legacy-bar: #8a4008 }
    }
    * { box-sizing: border-box }
    body { margin: 0; font: 17px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
        overflow-wrap: anywhere; --link: var(--front); --bar: var(--front-bar) }
    body.backend { --link: var(--legacy); --bar: var(--legacy-bar) }
    header { padding: .5rem 1.5rem; color: #fff; background: var(--bar); font-weight: 600 }
    main { max-width: 46rem; margin: 2rem auto; padding: 1.5rem 2rem; background: var(--page); border-radius: .6rem;
        border: 1px solid var(--line) }
    h1 { margin: 0; font-size: 1.7rem } h2 { margin: 2rem 0 .5rem; font-size: 1.15rem }
    .subtitle { margin: .3rem 0 1.5rem; color: var(--faint) }
    ul { padding-left: 1.2rem } li { margin: .4rem 0 } a { color: var(--link) }
    code, pre { font: .9em ui-monospace, monospace; background: var(--code); border-radius: .3rem; padding: .1em .3em }
    pre { padding: .8rem; font-size: .8em; line-height: 1.5; white-space: pre-wrap }
    pre.code { white-space: pre; overflow-x: auto }
    table { border-collapse: collapse; width: 100% }
    th, td { text-align: left; vertical-align: top; padding: .5rem 0; border-top: 1px solid var(--line) }
    th { padding-right: 1.5rem; white-space: nowrap } td { width: 100% } small { display: block; color: var(--faint) }
    form { padding: 1rem; background: var(--back); border-radius: .4rem }
    input, button { font: inherit; padding: .25rem .6rem; border: 1px solid var(--line); border-radius: .3rem }
    input { max-width: 100%; color: var(--text); background: var(--page) }
    button { color: var(--page); background: var(--link); font-weight: 600; border-color: var(--link); cursor: pointer }
    nav { margin-top: 2rem; padding-top: 1rem; border-top: 1px solid var(--line) }
    nav a { display: inline-block; margin-right: 1rem }
    @media (max-width: 40rem) {
        header { padding: .5rem 1rem } main { margin: 0; padding: 1rem; border: 0; border-radius: 0 }
        th, td { display: block; width: 100% } td { padding-top: 0; border: 0 }
    }";
