//! The guides, held against the code.

use std::{collections::BTreeSet, fs, path::Path};

/// The rows of a page's tables, as they are written.
fn rows(page: &str) -> Vec<&str> {
    page.lines().filter(|line| line.starts_with("| ")).collect()
}

/// The calls of a macro of tracing in a file: the level, and all that is between the parentheses.
fn events(code: &str) -> Vec<(String, &str)> {
    let calls = ["error", "warn", "info", "debug", "trace"].into_iter().flat_map(|level| {
        let name = format!("tracing::{level}!(");
        let starts: Vec<_> = code.match_indices(&name).map(|(at, _)| at + name.len()).collect();
        starts.into_iter().map(move |start| (level.to_uppercase(), start))
    });
    calls
        .map(|(level, start)| {
            let end = code[start..].find(");").or_else(|| code[start..].find("),")).expect("the end of the call");
            (level, &code[start..start + end])
        })
        .collect()
}

/// The message of an event: its last string.
fn message(call: &str) -> &str {
    let end = call.rfind('"').expect("a message");
    let start = call[..end].rfind(" \"").expect("the beginning of the message");
    &call[start + 2..end]
}

/// The names of an event's fields, other than shorthand ones.
fn fields(call: &str) -> impl Iterator<Item = &str> {
    call.match_indices(" = ").filter_map(|(end, _)| call[..end].rsplit([' ', '\n', '(', ',']).next())
}

fn visit(dir: &Path, f: &mut impl FnMut(&str)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, f);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            // Without comments, whose examples emit events of the application.
            let code = fs::read_to_string(&path).unwrap();
            f(&code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n"));
        }
    }
}

#[test]
fn every_event_is_in_the_guide_to_telemetry() {
    let page = include_str!("../../src/docs/telemetry.md");
    let (rows, mut seen) = (rows(page), 0);
    visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut |code| {
        // An event in an example isn't one of the crate's.
        let code: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for (level, call) in events(&code.join("\n")) {
            seen += 1;
            let message = match message(call) {
                "{error}" => "the [`Error`]'s text",
                message => message,
            };
            let is_row = |row: &&&str| {
                let mut cells = row.trim_matches('|').split(" | ").map(str::trim);
                let (Some(a_level), Some(a_message)) = (cells.next(), cells.next()) else { return false };
                a_level == format!("`{level}`") && message.starts_with(a_message.trim_end_matches('…').trim_end())
            };
            let row = rows.iter().find(is_row).unwrap_or_else(|| panic!("no row for {level} {message:?}"));
            for field in fields(call) {
                assert!(row.contains(&format!("`{field}`")), "no {field} for {message:?}");
            }
        }
    });
    assert!(seen > 10, "only {seen} events found: does the test still read them?");
}

#[test]
fn every_identity_claim_is_in_the_guides() {
    let code = include_str!("../../src/headers/reserved.rs");
    let identity = include_str!("../../src/docs/identity.md").to_lowercase();
    let behind = include_str!("../../src/docs/behind_a_proxy.md").to_lowercase();
    let list = code.split("let claims: &[&str]").nth(1).unwrap().split("_ => return false").next().unwrap();
    let claims: Vec<_> = list.split('"').skip(1).step_by(2).collect();
    assert!(claims.len() > 20, "only {claims:?}: does the test still read them?");

    let names = |before: &'static str, after: &'static str| {
        let lines = behind.lines().map(str::trim_start);
        lines.filter_map(move |line| line.strip_prefix(before)?.split(after).next()).collect::<Vec<_>>()
    };
    let (nginx, caddy) = (names("proxy_set_header ", " "), names("header_up -", "*"));
    for claim in claims {
        assert!(identity.contains(&format!("`{claim}*`")), "{claim} isn't in the guide to identity");
        assert!(caddy.iter().any(|name| claim.starts_with(name)), "Caddy forwards {claim}");
        // Its names are the application's own.
        assert!(
            claim == "x-remote-extra-" || nginx.iter().any(|name| name.starts_with(claim)),
            "nginx forwards all of {claim}"
        );
    }
}

/// The setters in a file, each with the type that has it: public methods that take a value and return one of the type.
fn setters(code: &str) -> Vec<(&str, &str)> {
    let impls = code.split("\nimpl").skip(1).flat_map(|code| {
        // `impl<U> Type<U> where ..`, and not a trait's.
        let header = code.split('{').next().unwrap();
        let name = header.strip_prefix('<').map_or(header, after_generics).trim();
        let name = name.split(['<', ' ', '\n']).next().unwrap();
        code.split("pub fn ").skip(1).map(move |method| (name, method))
    });
    let setters = impls.filter_map(|(name, method)| {
        // A long one has several lines.
        let signature = method.split('{').next().unwrap().split_whitespace().collect::<String>();
        let (parameters, returned) = signature.rsplit_once("->")?;
        let takes_self = parameters.contains("(self") || parameters.contains("(mutself");
        let returns_self = [String::from("Self"), format!("{name}<"), format!("{name},"), "Result<Self,".to_owned()]
            .iter()
            .any(|start| returned.starts_with(start.as_str()));
        (takes_self && returns_self).then(|| (name, method.split(['(', '<']).next().unwrap()))
    });
    setters.collect()
}

/// What follows the generics of an `impl`, whose opening bracket has been read.
fn after_generics(code: &str) -> &str {
    let mut depth = 1;
    for (at, bracket) in code.match_indices(['<', '>']) {
        match bracket {
            "<" => depth += 1,
            _ if code[..at].ends_with('-') => {}
            _ => depth -= 1,
        }
        if depth == 0 {
            return &code[at + 1..];
        }
    }
    code
}

/// Types whose methods are no options of a proxy: values, services, and the members of a simulation.
const NO_OPTIONS: &[&str] =
    &["Balance", "Behaviour", "Credentials", "Retry", "SimulatedMember", "Simulation", "TargetService", "boxed"];

#[test]
fn every_option_is_in_the_table_of_options() {
    let page = include_str!("../../src/docs/options.md");
    let (mut seen, mut types, mut missing) = (0, BTreeSet::new(), Vec::new());
    visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut |code| {
        for (name, setter) in setters(code) {
            if NO_OPTIONS.contains(&name) || NO_OPTIONS.contains(&setter) {
                continue;
            }
            seen += 1;
            types.insert(name.to_owned());
            let link = format!("::{name}::{setter}");
            let is_row = |row: &&str| row.starts_with(&format!("| [`{setter}`]")) && row.contains(&format!("{link})"));
            let is_link = |line: &str| line.starts_with(&format!("[`{setter}`]: ")) && line.ends_with(&link);
            let has_row = rows(page).iter().any(is_row)
                || page.contains(&format!("\n| [`{setter}`] |")) && page.lines().any(is_link);
            if !has_row {
                missing.push(format!("{name}::{setter}"));
            }
        }
    });
    assert_eq!(missing, [""; 0], "no rows");
    assert!(seen > 110 && types.len() > 15, "only {seen} of {types:?}: does the test still read them?");
}

#[test]
fn every_example_that_a_page_names_is_a_link_to_a_file() {
    const EXAMPLES: &str = "https://docs.rs/crate/tower-reverse-proxy/latest/source/";
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut links = 0;
    for entry in fs::read_dir(root.join("src/docs")).unwrap() {
        let page = entry.unwrap().path();
        let text = fs::read_to_string(&page).unwrap();
        assert!(!text.replace('\n', " ").contains("example `"), "{} names an example without a link", page.display());
        for link in text.split(EXAMPLES).skip(1) {
            let file = link.split(|c: char| c.is_whitespace() || c == ')').next().unwrap();
            assert!(root.join(file).is_file(), "{} links to {file}, which doesn't exist", page.display());
            links += 1;
        }
    }
    assert!(links > 10, "only {links} links found: does the test still read them?");
}
