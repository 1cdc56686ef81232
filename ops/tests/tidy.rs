//! The house style as a test: sizes, headers, crate arrows, banned words, one place for versions.

#![expect(clippy::unwrap_used, reason = "a test that cannot read the tree fails")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const MAX_LINES: usize = 500;
const MAX_COLUMNS: usize = 100;
const SERVICES: [&str; 5] = ["gateway", "jobs", "relayer", "metering", "webhooks"];
const TOP_LEVEL: [&str; 15] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "ARCHITECTURE.md",
    "docker-compose.yml",
    "gateway",
    "jobs",
    "relayer",
    "metering",
    "webhooks",
    "contracts",
    "ops",
    "loadtest",
    "target",
    "node_modules",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// Files below `folder` with `ending`, without build output, packages and generated code.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if !["target", "node_modules", "gen", "out", "cache"].contains(&name)
                && !name.starts_with('.')
            {
                found.extend(files(&path, ending));
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
    found
}

fn sources() -> Vec<(String, String)> {
    let root = root();
    let read = |path: PathBuf| {
        let name = path
            .strip_prefix(&root)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let text = fs::read_to_string(&path).unwrap();
        (name, text)
    };
    files(&root, ".rs").into_iter().map(read).collect()
}

fn complain(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn files_are_short_narrow_and_say_what_they_are_for() {
    let mut complaints = Vec::new();
    for (name, text) in sources() {
        let lines = text.lines().count();
        if lines > MAX_LINES {
            complaints.push(format!("{name}: {lines} lines, at most {MAX_LINES}"));
        }
        if !text.starts_with("//!") {
            complaints.push(format!("{name}: does not begin with a `//!` paragraph"));
        }
        let wide = |line: &&str| line.chars().count() > MAX_COLUMNS;
        for line in text.lines().filter(wide) {
            complaints.push(format!("{name}: wider than {MAX_COLUMNS} columns: {line}"));
        }
    }
    complain(&complaints);
}

#[test]
fn folders_below_src_are_one_deep_and_there_is_no_mod_rs() {
    let mut complaints = Vec::new();
    for (name, _) in sources() {
        if name.ends_with("/mod.rs") {
            complaints.push(format!("{name}: name the module's file after the module"));
        }
        if let Some((_, below)) = name.split_once("/src/")
            && below.matches('/').count() > 1
        {
            complaints.push(format!("{name}: deeper than one folder below src"));
        }
    }
    complain(&complaints);
}

#[test]
fn nothing_is_left_half_said() {
    // Split, so that this file does not accuse itself.
    let banned = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("#[allow", "("),
        concat!("#![allow", "("),
        concat!("#[ig", "nore"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
    ];
    let mut complaints = Vec::new();
    for (name, text) in sources() {
        for word in banned {
            if text.contains(word) {
                complaints.push(format!("{name}: contains {word}"));
            }
        }
    }
    complain(&complaints);
}

#[test]
fn every_sql_text_names_its_function() {
    let mut complaints = Vec::new();
    for (name, text) in sources() {
        if name.contains("/tests/") || name.ends_with("testing.rs") {
            continue;
        }
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let sql = ["\"SELECT ", "\"INSERT ", "\"UPDATE ", "\"DELETE "];
            // What a lease claim picks is a part of the named statement that claims it.
            let part = lines[number.saturating_sub(1)].contains("pick = ");
            if sql.iter().any(|start| line.contains(start)) && !part && !line.contains("pick = ") {
                complaints.push(format!(
                    "{name}:{}: SQL without a naming comment",
                    number + 1
                ));
            }
        }
    }
    complain(&complaints);
}

#[test]
fn crates_depend_only_along_the_allowed_arrows() {
    let mut complaints = Vec::new();
    let all: BTreeSet<&str> = SERVICES
        .iter()
        .chain(&["contracts", "ops", "loadtest"])
        .copied()
        .collect();
    for &name in &all {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        let ours = dependencies.lines().filter_map(|line| {
            let used = line.split(['.', ' ', '=']).next()?;
            all.get(used).copied()
        });
        for used in ours {
            let allowed = match name {
                "contracts" | "ops" => false,
                "loadtest" => used == "contracts",
                _ => used == "contracts" || used == "ops",
            };
            if !allowed {
                complaints.push(format!("{name} may not depend on {used}"));
            }
        }
        for line in manifest
            .lines()
            .filter(|line| line.contains("version = \""))
        {
            complaints.push(format!(
                "{name}/Cargo.toml: versions stand in the root only: {line}"
            ));
        }
    }
    complain(&complaints);
}

#[test]
fn the_top_level_is_the_layout_and_nothing_else() {
    let mut complaints = Vec::new();
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()) {
            complaints.push(format!("{name}: not in the layout"));
        }
    }
    complain(&complaints);
}
