//! The pages of the repository: what they link to exists.

use std::{fs, path::Path};

const PAGES: [&str; 7] = [
    "README.md",
    "COMPARE.md",
    "CONTRIBUTING.md",
    "DESIGN.md",
    "SECURITY.md",
    "benches/README.md",
    "examples/README.md",
];

fn read(page: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap()
}

/// The targets of `[text](target)` and of `[name]: target`.
fn links(page: &str) -> Vec<&str> {
    let inline = page.split("](").skip(1).filter_map(|rest| rest.split([')', '\n']).next());
    let named = page.lines().filter(|line| line.starts_with('[')).filter_map(|line| Some(line.split_once("]: ")?.1));
    inline.chain(named).collect()
}

/// As GitHub makes the anchor of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

#[test]
fn links_between_files_lead_to_files_and_headings() {
    for page in PAGES {
        let text = read(page);
        let folder = Path::new(page).parent().unwrap();
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.to_owned(),
                file => folder.join(file).to_str().unwrap().to_owned(),
            };
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(&target).exists(), "{page}: {link}");
            let is_heading =
                |line: &str| line.strip_prefix('#').is_some_and(|rest| anchor(rest.trim_start_matches('#')) == heading);
            assert!(heading.is_empty() || read(&target).lines().any(is_heading), "{page}: {link}");
        }
    }
}

#[test]
fn links_to_the_guide_lead_to_its_pages() {
    let guide = read("src/guide.rs");
    let mut found = 0;
    for page in PAGES {
        for link in links(&read(page)) {
            let Some((_, name)) = link.split_once("/tower_reverse_proxy/guide/") else { continue };
            let name = name.split('/').next().unwrap();
            assert!(name == "index.html" || guide.contains(&format!("pub mod {name} ")), "{page}: {link}");
            found += 1;
        }
    }
    assert_ne!(found, 0);
}

#[test]
fn the_figures_of_the_readme_are_those_of_the_benches() {
    let benches = read("benches/README.md");
    let readme = read("README.md");
    let rows = readme.lines().filter_map(|line| line.strip_suffix(" |")?.rsplit_once("| ")).map(|(_, last)| last);
    let figures: Vec<_> = rows.filter(|last| last.split(',').all(|part| part.parse::<u32>().is_ok())).collect();
    assert_eq!(figures.len(), 5, "{figures:?}");
    for figure in figures {
        assert!(benches.contains(&format!("| {figure} |")), "{figure}");
    }
}
