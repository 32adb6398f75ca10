//! What was captured and recorded from real servers, read: see the READMEs of `fixtures/captures` and `fixtures/recordings`.

#[path = "support/seen.rs"]
mod seen;

use std::fs;
use std::path::{Path, PathBuf};

use seen::{bytes_of, cut_everywhere, read, read_all, told};

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn show() {
    for entry in fs::read_dir("/work/captures/fixtures/captures").unwrap() {
        let path = entry.unwrap().path();
        if !path.to_str().unwrap().contains(".pcap") {
            continue;
        }
        let (seen, error, left) = read_all(&fs::read(&path).unwrap(), Default::default());
        println!("== {} {:?} {}\n{}", path.display(), error, left, told(&seen).join("\n"));
    }
}
