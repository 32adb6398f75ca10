//! `docs/matrix.md`, which is made of the tables: what stands there between marks must be what they say.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::differences::{ANSWERS, ANY, Now, VARIABLES};
use super::exchange::{GET, OF_THE_WAY};
use super::rows::{Body, ROWS};
use super::ways::{FROM, Far, NO_CELLS, TO};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/matrix.md");

/// With this in the environment the page is written and not looked at.
const WRITE: &str = "GATESPAN_WRITE_PAGES";

pub fn check() {
    let page = std::fs::read_to_string(Path::new(PAGE)).unwrap_or_else(|error| panic!("{PAGE}: {error}"));
    let mut made = String::new();
    let mut rest = page.as_str();
    for (name, table) in tables() {
        let (begin, end) = (format!("<!-- made of the tables: {name} -->\n"), "<!-- end -->\n");
        let (before, after) = rest.split_once(&*begin).unwrap_or_else(|| panic!("the page has no {begin}"));
        let (_, after) = after.split_once(end).unwrap_or_else(|| panic!("{name} has no end"));
        made += &format!("{before}{begin}{table}{end}");
        rest = after;
    }
    made += rest;
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(PAGE, made).expect("the page can be written");
        return;
    }
    let differs = made.lines().zip(page.lines()).find(|(made, page)| made != page);
    assert!(made == page, "docs/matrix.md is not what the tables say: run this test with {WRITE}=1. {differs:?}");
}

/// In the order in which they stand on the page.
fn tables() -> [(&'static str, String); 8] {
    [
        ("from", list(FROM.iter().map(|from| code(from.name)))),
        ("to", list(TO.iter().map(|to| code(to.name)))),
        ("none", none()),
        ("variables", reference()),
        ("other variables", other_variables()),
        ("fields", fields()),
        ("answers", answers()),
        ("other answers", other_answers()),
    ]
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.fold(String::new(), |text, item| text + "- " + &item + "\n")
}

fn none() -> String {
    let cells = NO_CELLS.iter().map(|(from, to, reason)| format!("{} with {}: {reason}.", code(from), code(to)));
    list(cells)
}

/// The ways that a list of beginnings means.
fn ways(beginnings: &[&str]) -> String {
    match beginnings {
        beginnings if beginnings == ANY => "any".to_owned(),
        beginnings => beginnings.iter().map(|beginning| code(beginning)).collect::<Vec<_>>().join(", "),
    }
}

fn reference() -> String {
    let mut table = "| variable | value |\n| --- | --- |\n".to_owned();
    for (name, value) in GET.variables() {
        let value = if value.is_empty() { "empty".to_owned() } else { code(&value) };
        let _ = writeln!(table, "| {} | {value} |", code(&name));
    }
    table
}

fn other_variables() -> String {
    let mut table = "| FROM | TO | variable | is | because |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for other in VARIABLES {
        let mut names = other.variables.iter().map(|name| code(name)).collect::<Vec<_>>().join(", ");
        if !other.rows.is_empty() {
            names += &format!(" of \"{}\"", other.rows.join(", "));
        }
        let now = match other.now {
            Now::Absent => "not there".to_owned(),
            Now::Any => "another".to_owned(),
            Now::Is(value) => code(&value.replace("@DIR@", "…").replace(env!("CARGO_PKG_VERSION"), "…")),
        };
        let _ = writeln!(table, "| {} | {} | {names} | {now} | {} |", ways(other.from), ways(other.to), other.reason);
    }
    table
}

fn fields() -> String {
    list(OF_THE_WAY.iter().map(|(name, reason)| format!("{name}: {reason}")))
}

fn answers() -> String {
    let mut far: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for row in ROWS {
        let end = match row.far {
            Far::Application => "application",
            Far::Environ => "`app:environ`",
            Far::Echo => "`app:echo`",
            Far::Files => "`file:/FOLDER`",
        };
        let body = match row.expect.body {
            Body::Text("") => "no body".to_owned(),
            Body::Text(text) => format!("{} bytes", text.len()),
            Body::Pattern(length) => format!("{length} bytes"),
            Body::Digest(_) => "length and SHA-256 of what came".to_owned(),
            Body::Contains(_) => "a page".to_owned(),
            Body::Environ => "the variables".to_owned(),
        };
        let cut = if row.expect.is_whole { "" } else { ", and the client sees that it was cut" };
        let line =
            format!("| {end} | {} | {} | {}, {body}{cut} |", row.name, code(row.asked.method), row.expect.status);
        far.entry(end).or_default().push(line);
    }
    let mut table = "| at the far end | request | method | answer |\n| --- | --- | --- | --- |\n".to_owned();
    for end in ["application", "`app:environ`", "`app:echo`", "`file:/FOLDER`"] {
        far.remove(end).unwrap_or_default().iter().for_each(|line| table += &format!("{line}\n"));
    }
    table
}

fn other_answers() -> String {
    let mut table = "| FROM | TO | request | instead | because |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for other in ANSWERS {
        let (from, to) = (ways(other.from), ways(other.to));
        let _ = writeln!(table, "| {from} | {to} | {} | {} | {} |", other.rows.join(", "), other.instead, other.reason);
    }
    table
}
