//! The rooms of the crate: a module uses the floors below its own. The table is `src/docs/layers.md`, which
//! CONTRIBUTING.md shows too, together with the diagram that `diagram` makes of it. The rooms of the client have a
//! table of their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
};

const TABLE: &str = include_str!("../../src/docs/layers.md");
const CLIENT_TABLE: &str = include_str!("../../src/docs/client_layers.md");
const CONTRIBUTING: &str = include_str!("../../CONTRIBUTING.md");

/// A path inside the crate: the modules from the root, then the item.
type Segments = Vec<String>;

#[test]
fn every_use_points_down() {
    let floors = floors(TABLE);
    let sources = sources();
    let mut uses = BTreeMap::<&str, BTreeSet<&str>>::new();
    for Source { file, module, code } in &sources {
        let Some(room) = module.first() else { continue };
        let floor = *floors.get(&**room).unwrap_or_else(|| panic!("{file} is in no room of src/docs/layers.md"));
        for path in paths(module, code) {
            let Some((used, &below)) = path.first().and_then(|used| floors.get_key_value(&**used)) else {
                panic!("{file} uses {}, which is in no room of src/docs/layers.md", path.join("::"))
            };
            // The rooms of the vocabulary may use each other, but not in a circle.
            assert!(
                used == room || below < floor || (below == floor && floor == 0),
                "{file} (floor {floor}) uses crate::{} (floor {below})",
                path.join("::"),
            );
            if used != room {
                uses.entry(room).or_default().insert(used);
            }
        }
    }
    let circle = circle(&uses);
    assert!(circle.is_none(), "these rooms use each other: {circle:?}");
    assert!(uses.values().map(BTreeSet::len).sum::<usize>() > 20, "too few uses found: {uses:?}");
}

#[test]
fn every_room_of_the_table_is_a_module() {
    let sources = sources();
    let modules: BTreeSet<&str> =
        sources.iter().filter_map(|source| source.module.first()).map(String::as_str).collect();
    let rooms: BTreeSet<&str> = floors(TABLE).into_keys().collect();
    assert_eq!(modules, rooms);
}

#[test]
fn contributing_shows_the_table_and_its_diagram() {
    assert!(CONTRIBUTING.contains(TABLE), "CONTRIBUTING.md differs from src/docs/layers.md: copy this there:\n{TABLE}");
    assert!(
        CONTRIBUTING.contains(CLIENT_TABLE),
        "CONTRIBUTING.md differs from src/docs/client_layers.md: copy this there:\n{CLIENT_TABLE}",
    );
    let diagram = diagram();
    assert!(CONTRIBUTING.contains(&diagram), "CONTRIBUTING.md has another diagram: copy this there:\n{diagram}");
}

#[test]
fn every_use_in_the_client_points_down() {
    let floors = floors(CLIENT_TABLE);
    let top = floors["mod"];
    let sources = sources();
    let mut rooms = BTreeSet::from(["mod"]);
    let mut uses = 0;
    for Source { file, module, code } in sources.iter().filter(|source| source.module[0] == "client") {
        let room = module.get(1).map_or("mod", String::as_str);
        rooms.insert(room);
        let floor = *floors.get(room).unwrap_or_else(|| panic!("{file} is in no room of src/docs/client_layers.md"));
        for path in paths(module, code).iter().filter(|path| path[0] == "client") {
            // What isn't in a room is the root's.
            let used = path.get(1).map(String::as_str).filter(|used| floors.contains_key(used)).unwrap_or("mod");
            let below = floors[used];
            assert!(
                used == room || below < floor || (below == top && floor == top),
                "{file} (floor {floor}) uses {} (floor {below})",
                path.join("::"),
            );
            uses += usize::from(used != room);
        }
    }
    assert_eq!(rooms, floors.into_keys().collect());
    assert!(uses > 20, "too few uses found: {uses}");
}

#[test]
fn the_files_of_a_room_are_in_no_circle() {
    let sources = sources();
    let files: BTreeMap<&[String], &str> =
        sources.iter().map(|source| (&*source.module, source.file.as_str())).collect();
    let mut uses = BTreeMap::<&str, BTreeSet<&str>>::new();
    for Source { file, module, code } in &sources {
        // An item, or a module within a file, is its file's.
        let used = |path: &Segments| (1..=path.len()).rev().find_map(|length| files.get(&path[..length]).copied());
        for used in paths(module, code).iter().filter_map(used) {
            uses.entry(node(file)).or_default().insert(node(used));
        }
        // A room's root uses its files.
        if let Some(root) = files.get(&module[..module.len() - 1]) {
            uses.entry(node(root)).or_default().insert(node(file));
        }
    }
    for (file, used) in &mut uses {
        used.remove(file);
    }
    // The oracles are tests.
    uses.retain(|file, _| file.starts_with("client/") && !file.contains("/oracle"));
    let circle = circle(&uses);
    assert!(circle.is_none(), "these files use each other: {circle:?}");
    assert!(uses.values().map(BTreeSet::len).sum::<usize>() > 50, "too few uses found: {uses:?}");
}

#[test]
fn the_client_has_no_memory_ordering_of_its_own() {
    for Source { file, module, code } in sources() {
        if module[0] == "client" {
            let tokens = tokens(&code);
            let ordering = tokens.windows(2).any(|pair| pair == ["Ordering", "::"]);
            let atomic = tokens.iter().find(|token| token.starts_with("Atomic"));
            assert!(!ordering && atomic.is_none(), "{file} uses an atomic: put what threads share under a lock");
        }
    }
}

/// The builder makes the client, which has a method that makes the builder.
fn node(file: &str) -> &str {
    if file == "client/builder.rs" { "client/mod.rs" } else { file }
}

// ---- The table ----

/// The rows of the table: floor and rooms, from top to bottom.
fn rows(table: &'static str) -> Vec<(usize, Vec<&'static str>)> {
    let rows = table.lines().skip(2).map(|line| {
        let mut cells = line.split('|').skip(1);
        let (floor, rooms) = (cells.next().unwrap().trim(), cells.next().unwrap());
        (floor.parse().unwrap(), rooms.split(',').map(|room| room.trim().trim_matches('`')).collect())
    });
    rows.collect()
}

fn floors(table: &'static str) -> BTreeMap<&'static str, usize> {
    rows(table).into_iter().flat_map(|(floor, rooms)| rooms.into_iter().map(move |room| (room, floor))).collect()
}

/// The table as a mermaid diagram.
fn diagram() -> String {
    let mut text = "```mermaid\nflowchart TB\n".to_owned();
    for (floor, rooms) in rows(TABLE) {
        writeln!(text, "  f{floor}[\"{floor}: {}\"]", rooms.join(" · ")).unwrap();
    }
    let floors: Vec<_> = rows(TABLE).into_iter().map(|(floor, _)| format!("f{floor}")).collect();
    writeln!(text, "  {}\n```", floors.join(" --> ")).unwrap();
    text
}

/// The rooms that use each other in a circle, if there are such.
fn circle<'a>(uses: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Option<BTreeSet<&'a str>> {
    let mut rest = uses.clone();
    loop {
        let before = rest.len();
        // A room is in no circle if it uses none of the rest, or none of the rest uses it.
        let using: BTreeSet<&str> = rest.keys().copied().collect();
        rest.retain(|_, used| !used.is_disjoint(&using));
        let used: BTreeSet<&str> = rest.values().flatten().copied().collect();
        rest.retain(|room, _| used.contains(room));
        if rest.len() == before {
            return (before > 0).then(|| rest.into_keys().collect());
        }
    }
}

// ---- The sources ----

struct Source {
    file: String,
    /// The path of the file's module; empty for the root.
    module: Segments,
    /// Without comments and tests.
    code: String,
}

/// Every file of `src` but the root.
fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    visit(&src, &mut |path, text| {
        let file = path.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/");
        let mut module: Segments = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|name| name == "mod" || name == "lib") {
            module.pop();
        }
        // In place of a room whose feature is off.
        if let Some(name) = module.last_mut()
            && let Some(room) = name.strip_prefix("no_")
        {
            *name = room.to_owned();
        }
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        if !module.is_empty() {
            sources.push(Source { file, module, code });
        }
    });
    sources
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

/// Every path in the code that starts with `crate` or `super`, also in nested lists over several lines, from the root.
fn paths(module: &[String], code: &str) -> Vec<Segments> {
    let tokens = tokens(code);
    let mut paths = Vec::new();
    let mut at = 0;
    let mut module = module.to_vec();
    // How many braces are open, and how many were where each inline module began.
    let (mut depth, mut inline) = (0, Vec::new());
    while at < tokens.len() {
        let starts = matches!(tokens[at], "crate" | "super") && tokens.get(at + 1) == Some(&"::");
        let inside = at > 0 && matches!(tokens[at - 1], "::" | "$");
        // `pub(in crate::client)` uses nothing.
        let is_visibility = at > 1 && tokens[at - 2..at] == ["(", "in"];
        if starts && !inside && !is_visibility {
            at = tree(&tokens, at, module.clone(), &mut paths);
            continue;
        }
        match tokens[at..] {
            ["mod", name, "{", ..] => {
                module.push(name.to_owned());
                inline.push(depth);
            }
            ["{", ..] => depth += 1,
            ["}", ..] => {
                depth -= 1;
                if inline.pop_if(|start| *start == depth).is_some() {
                    module.pop();
                }
            }
            _ => {}
        }
        at += 1;
    }
    // A path to the root itself uses no room.
    paths.retain(|path| !path.is_empty());
    paths
}

/// Reads a path or a tree of paths from `at`; returns where it ends.
fn tree(tokens: &[&str], mut at: usize, mut base: Segments, paths: &mut Vec<Segments>) -> usize {
    loop {
        match tokens.get(at).copied() {
            Some("{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| *token != "}") {
                    at = if tokens[at] == "," { at + 1 } else { tree(tokens, at, base.clone(), paths) };
                }
                return at + 1;
            }
            Some("crate") => base.clear(),
            Some("super") => drop(base.pop()),
            Some("self" | "*") => {}
            Some(name) if is_name(name) => base.push(name.to_owned()),
            _ => {
                paths.push(base);
                return at + 1;
            }
        }
        at += 1;
        if tokens.get(at) != Some(&"::") {
            // `name as other`
            let renamed = tokens.get(at) == Some(&"as");
            paths.push(base);
            return if renamed { at + 2 } else { at };
        }
        at += 1;
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Names, `::`, and every other character but blanks by itself.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let name = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let length = match name {
            0 if rest.starts_with("::") => 2,
            0 => first.len_utf8(),
            name => name,
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

#[test]
fn paths_are_read() {
    let of = |module: &str, code: &str| {
        let module: Segments = module.split("::").map(str::to_owned).collect();
        paths(&module, code).iter().map(|path| path.join("::")).collect::<Vec<_>>()
    };
    let code = "use crate::{\n    a::{B, C as D},\n    e::{self, f::*},\n    G,\n};\nfn f() { crate::h::<i>() }";
    assert_eq!(of("m", code), ["a::B", "a::C", "e", "e::f", "G", "h"]);
    let code = "use super::{\n    super::{a::B, c},\n    d::E,\n};\nfn f() -> super::F { super::super::g::h() }";
    assert_eq!(of("m::n::o", code), ["m::a::B", "m::c", "m::n::d::E", "m::n::F", "m::g::h"]);
    assert_eq!(of("m", "use super::a::B; pub(in super::super) struct C; pub(super) fn d();"), ["a::B"]);
    assert_eq!(of("m::n", "pub(in crate::m) struct A; pub(in super::super) struct B; fn c(d: super::D);"), ["m::D"]);
    assert_eq!(of("m", "mod n { use super::a; fn f() { super::b() } } use super::c;"), ["m::a", "m::b", "c"]);
    assert_eq!(of("m::n", "$crate::a::B; self::c::D; x::super::y"), Vec::<String>::new());
}

#[test]
fn circles_are_found() {
    let graph = |uses: &[(&'static str, &'static str)]| {
        let mut graph = BTreeMap::<_, BTreeSet<_>>::new();
        for &(room, used) in uses {
            graph.entry(room).or_default().insert(used);
        }
        circle(&graph)
    };
    assert_eq!(graph(&[("a", "b"), ("b", "c"), ("a", "c")]), None);
    let circle = graph(&[("x", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("c", "y"), ("y", "z")]);
    assert_eq!(circle, Some(["a", "b", "c"].into()));
}
