//! The house: every `use crate::` points down. The rooms stand in the crate's documentation.

use std::{collections::BTreeMap, fs, path::Path};

/// Rooms and their floors. A room may use the rooms below its own floor, and no sibling.
const FLOORS: [&[&str]; 7] = [
    &["error", "backend", "expect", "identity", "path"],
    &["headers", "axum"],
    &["client", "refuse", "upgrade"],
    &["upstream", "basic_auth", "remote_user", "trace_redirect"],
    &["forward"],
    &["proxy", "fuzzing"],
    // Documentation alone.
    &["guide"],
];

#[test]
fn every_arrow_points_down() {
    let floors: BTreeMap<&str, usize> =
        FLOORS.iter().enumerate().flat_map(|(floor, rooms)| rooms.iter().map(move |room| (*room, floor))).collect();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    visit(&src, &mut |path, text| {
        let relative = path.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/");
        if relative == "lib.rs" {
            return;
        }
        let room = relative.trim_end_matches(".rs").split('/').next().unwrap().to_owned();
        let floor = *floors.get(&*room).unwrap_or_else(|| panic!("{relative} is in no room"));
        let code = text.split("#[cfg(test)]").next().unwrap();
        for used in rooms_used(code) {
            seen += 1;
            let Some(&below) = floors.get(&*used) else { panic!("{relative} uses {used}, which is no room") };
            // The vocabulary and the pure functions may use each other within their floor.
            let allowed = used == room || below < floor || (below == floor && floor == 0);
            assert!(allowed, "{relative} (floor {floor}) uses crate::{used} (floor {below})");
        }
    });
    assert!(seen > 20, "only {seen} uses found: does the test still read them?");
}

/// The names that follow `crate::`, also in a braced list.
fn rooms_used(code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    let code: String =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with('$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => rooms.push(first_name(rest)),
            Some(list) => {
                let (mut depth, mut start) = (0, true);
                for (index, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && depth == 0 && c.is_alphabetic() => {
                            rooms.push(first_name(&list[index..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    rooms
}

fn first_name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn visit(dir: &Path, f: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, f);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            f(&path, &fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn uses_are_read() {
    let code = "use crate::{\n    a::{B, C},\n    d::E,\n};\nfn f() { crate::g::h() }\n// crate::no\n";
    assert_eq!(rooms_used(code), ["a", "d", "g"]);
}
