//! The house's rules that the compiler does not enforce: which floor may import which, where the tool's own libraries may
//! be used, and that no dependency needs a newer compiler than `Cargo.toml` states.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Which modules of the crate's root a folder of `src` may name. Its files may always name their own.
const FLOORS: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("address", &[]),
    ("application", &["protocol"]),
    ("middleware", &["address", "application", "protocol"]),
    ("gateway", &["application", "address", "local_socket", "protocol"]),
    ("local_socket", &[]),
    ("recording", &["protocol"]),
    ("tower", &["application", "protocol"]),
    ("upstream", &["address", "application", "local_socket", "protocol"]),
];

/// The files that may hold `unsafe`. ARCHITECTURE.md says why.
const UNSAFE: [&str; 8] = [
    "src/gateway/cgi.rs",
    "src/gateway/run.rs",
    "src/local_socket.rs",
    "src/upstream/cgi/spawn/child.rs",
    "src/upstream/cgi/spawn/descriptors.rs",
    "src/upstream/cgi/spawn/identity.rs",
    "src/upstream/signals.rs",
    "src/upstream/watcher.rs",
];

#[test]
fn a_floor_imports_only_floors_below_it() {
    for (file, text) in sources("src") {
        let parts: Vec<&str> = file.iter().filter_map(|part| part.to_str()).collect();
        // lib.rs is the map of all floors.
        if parts[1] == "lib.rs" {
            continue;
        }
        let floor = parts[1].trim_end_matches(".rs");
        let (_, below) = FLOORS
            .iter()
            .find(|(name, _)| *name == floor)
            .unwrap_or_else(|| panic!("{}: {floor} is on no floor: say here what it may import", file.display()));
        for path in paths_from(&text, "crate::") {
            let first = path.split("::").next().unwrap_or_default();
            assert!(
                first == floor || below.contains(&first),
                "{}: crate::{path} is imported, but {floor} may import only {below:?}",
                file.display()
            );
        }
    }
}

#[test]
fn the_folders_inside_protocol_do_not_import_each_other() {
    const FOLDERS: [&str; 2] = ["cgi", "fastcgi"];
    for own in FOLDERS {
        for (file, text) in sources(&format!("src/protocol/{own}")) {
            for other in FOLDERS.into_iter().filter(|other| *other != own) {
                for start in ["crate::protocol::", "super::super::"] {
                    let found =
                        paths_from(&text, start).into_iter().find(|path| path.split("::").next() == Some(other));
                    assert_eq!(found, None, "{}: {own} imports {other}", file.display());
                }
            }
        }
    }
}

#[test]
fn upstreams_do_not_import_each_other() {
    // A site stands before files; what else two of them need stands beside them.
    const FOLDERS: [&str; 5] = ["cgi", "fastcgi", "files", "http", "site"];
    for own in FOLDERS {
        for (file, text) in sources(&format!("src/upstream/{own}")) {
            for other in FOLDERS.into_iter().filter(|other| *other != own) {
                for start in ["crate::upstream::", "super::super::"] {
                    let found =
                        paths_from(&text, start).into_iter().find(|path| path.split("::").next() == Some(other));
                    assert_eq!(found, None, "{}: {own} imports {other}", file.display());
                }
            }
        }
    }
}

#[test]
fn unsafe_stays_where_it_is_listed() {
    let is_unsafe = |text: &str| text.lines().any(|line| line.contains("unsafe {") || line.contains("unsafe impl"));
    let found: BTreeSet<PathBuf> = ["src", "bin"]
        .into_iter()
        .flat_map(sources)
        .filter(|(_, text)| is_unsafe(text) || text.contains("unsafe_code"))
        .map(|(file, _)| file)
        .collect();
    assert_eq!(found, UNSAFE.iter().map(PathBuf::from).collect());
}

#[test]
fn what_the_documents_link_to_is_there() {
    for document in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let text =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).expect("the document is there");
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        for target in targets.filter(|target| !target.starts_with("http") && !target.starts_with('#')) {
            let path = target.split('#').next().unwrap_or_default();
            assert!(
                Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists(),
                "{document} links to {target}, which is not there"
            );
        }
    }
}

#[test]
fn clap_and_anyhow_live_in_the_tool() {
    for (file, text) in sources("src") {
        for library in ["clap", "clap_complete", "clap_mangen", "anyhow"] {
            let used = paths_from(&text, &format!("{library}::"));
            assert!(used.is_empty(), "{}: {library} is for bin/ only", file.display());
        }
    }
}

#[test]
fn no_dependency_needs_a_newer_compiler() {
    let metadata = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version=1", "--all-features", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).expect("cargo metadata is JSON");
    let nodes = metadata["resolve"]["nodes"].as_array().expect("the graph is resolved");
    let resolved: BTreeSet<&str> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
    let packages = metadata["packages"].as_array().expect("there are packages");
    let own = packages.iter().find(|package| package["name"] == env!("CARGO_PKG_NAME")).expect("this package is there");
    let own = version(own["rust_version"].as_str().expect("Cargo.toml states a rust-version"));
    let newer: Vec<String> = packages
        .iter()
        .filter(|package| package["id"].as_str().is_some_and(|id| resolved.contains(id)))
        .filter(|package| package["rust_version"].as_str().is_some_and(|stated| version(stated) > own))
        .map(|package| format!("{} {} needs {}", package["name"], package["version"], package["rust_version"]))
        .collect();
    assert!(newer.is_empty(), "Cargo.toml states {own:?}, but {}", newer.join(", "));
}

/// A version's numbers.
fn version(text: &str) -> Vec<u64> {
    let mut numbers: Vec<u64> = text.split('.').map(|part| part.parse().expect("versions are numbers")).collect();
    numbers.resize(3, 0);
    numbers
}

/// All Rust files below a folder of the package, with their content; those that a comment line holds are left out.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut folders) = (Vec::new(), vec![root.join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("sources are UTF-8");
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                let name = path.strip_prefix(root).expect("it was found below it").to_owned();
                found.push((name, code.collect::<Vec<_>>().join("\n")));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} has sources");
    found
}

/// What follows each `start` in a source, up to the end of the path: one for each branch of a `{…}` right behind it.
fn paths_from(text: &str, start: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (position, _) in text.match_indices(start) {
        let before = text[..position].chars().next_back();
        if before.is_some_and(|before| before.is_alphanumeric() || before == '_' || before == ':') {
            continue;
        }
        let rest = &text[position + start.len()..];
        match rest.strip_prefix('{') {
            None => found.push(path(rest)),
            Some(branches) => {
                let mut depth = 0;
                let mut branch = String::new();
                for character in branches.chars() {
                    match character {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => found.push(path(std::mem::take(&mut branch).trim())),
                        _ if depth == 0 => branch.push(character),
                        _ => {}
                    }
                }
                found.push(path(branch.trim()));
            }
        }
    }
    found.retain(|path| !path.is_empty());
    found
}

/// The path that a text begins with.
fn path(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || matches!(character, '_' | ':')).collect()
}

#[test]
fn paths_are_found_in_every_spelling() {
    let text = "use crate::a::b;\nuse crate::{c::{d, e}, f};\nlet x = crate::g::h();\nmycrate::i; $crate::j";
    assert_eq!(paths_from(text, "crate::"), ["a::b", "c::", "f", "g::h", "j"]);
}
