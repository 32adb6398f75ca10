//! Every way in with every way out: the same requests through `gatespan bridge FROM TO`, with the same application at the far end, get
//! the same answers, and the application is told the same, but for what the tables here list with its reason. `docs/matrix.md` is these tables.
//!
//! A new way in or out is a line in `matrix/ways.rs`; what it does otherwise is a line in `matrix/differences.rs`.
#![cfg(feature = "cli")]
#![allow(unreachable_pub, reason = "a module of a test binary has no outside")]

mod support;
#[path = "support/bridge.rs"]
mod bridge;
#[path = "matrix/differences.rs"]
mod differences;
#[path = "matrix/exchange.rs"]
mod exchange;
#[path = "matrix/page.rs"]
mod page;
#[path = "matrix/rows.rs"]
mod rows;
#[path = "matrix/ways.rs"]
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use differences::{ANSWERS, Now, VARIABLES};
use exchange::{Announced, Asked, Came, GET, POST, Piece};
use rows::{Body, ROWS, Row};
use rustix::process::{Pid, Signal, kill_process};
use support::pattern::blocks;
use support::table;
use ways::{Cell, FROM, Far, LARGE, Matrix, Protocol, TO, at_once, covers};

/// All problems at once, each on a line.
fn no_problems(problems: Vec<Vec<String>>) {
    let problems = problems.concat();
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn the_same_request_gets_the_same_answer_in_every_cell() {
    let matrix = Matrix::shared();
    let told = Mutex::new(BTreeSet::new());
    let answered = Mutex::new(BTreeSet::new());
    no_problems(at_once(&matrix.cells, |cell| {
        let mut problems = Vec::new();
        for row in ROWS.iter().filter(|row| row.far == cell.to.far) {
            let mut problem = |text: String| problems.push(format!("{}: {}: {text}", cell.name(), row.name));
            let Some(mut came) = cell.begin(&row.asked).run(&row.asked) else {
                problem("no answer".into());
                continue;
            };
            // How much memory a process has is the process's affair.
            came.head.headers.retain(|(name, _)| name != "x-memory");
            let mut expect = &row.expect;
            for (index, other) in ANSWERS.iter().enumerate().filter(|(_, other)| other.is_for(row, cell)) {
                expect = &other.expect;
                if !check(&row.expect, &came).is_empty() {
                    answered.lock().unwrap().insert(index);
                }
            }
            check(expect, &came).into_iter().for_each(&mut problem);
            if let Body::Environ = expect.body {
                variables(&matrix, cell, row, &came, &mut told.lock().unwrap()).into_iter().for_each(&mut problem);
            }
        }
        problems
    }));
    // A difference that is none is a line too many.
    let unseen = VARIABLES.iter().enumerate().filter(|(index, _)| !told.lock().unwrap().contains(index));
    let unseen: Vec<_> = unseen.map(|(_, other)| (other.variables, other.from, other.to)).collect();
    assert!(unseen.is_empty(), "listed as different, and the same: {unseen:?}");
    let unseen = ANSWERS.iter().enumerate().filter(|(index, _)| !answered.lock().unwrap().contains(index));
    let unseen: Vec<_> = unseen.map(|(_, other)| (other.rows, other.from, other.to)).collect();
    assert!(unseen.is_empty(), "listed as different, and the same: {unseen:?}");
}

/// What is not as it should be with an answer.
fn check(expect: &rows::Expect, came: &Came) -> Vec<String> {
    let mut problems = Vec::new();
    let head = &came.head;
    if (head.status, &*head.reason) != (expect.status, expect.reason) {
        problems.push(format!("expected {} {}, got {} {}", expect.status, expect.reason, head.status, head.reason));
    }
    // The length of a page is its own affair, as long as it is right, which belongs to being whole.
    let is_page = matches!(expect.body, Body::Environ | Body::Contains(_) | Body::Digest(_));
    let headers = head.headers.iter().filter(|(name, _)| !is_page || name != "content-length");
    let headers: Vec<_> = headers.map(|(name, value)| (&**name, &**value)).collect();
    if headers != expect.headers {
        problems.push(format!("expected the fields {:?}, got {headers:?}", expect.headers));
    }
    if came.is_whole != expect.is_whole {
        problems
            .push(format!("expected whole: {}, got {} bytes, whole: {}", expect.is_whole, came.length, came.is_whole));
    }
    let is_so = match expect.body {
        Body::Text(text) => came.body == text.as_bytes(),
        Body::Digest(length) => came.text() == table::digest(length),
        Body::Pattern(length) => format!("{} {}\n", came.length, came.sha256) == table::digest(length),
        Body::Contains(text) => came.text().contains(text),
        Body::Environ => true,
    };
    if !is_so {
        let text: String = came.text().chars().take(300).collect();
        problems.push(format!("expected {:?}, got {} bytes: {text:?}", expect.body, came.length));
    }
    problems
}

/// What is not as it should be with the variables on a page of them. The differences that were seen are noted.
fn variables(matrix: &Matrix, cell: &Cell, row: &Row, came: &Came, seen: &mut BTreeSet<usize>) -> Vec<String> {
    let text = came.text();
    let page = text.lines().filter_map(|line| line.split_once('='));
    let page: BTreeMap<String, String> = page.map(|(name, value)| (name.into(), value.into())).collect();
    let reference: BTreeMap<String, String> = row.asked.variables().into_iter().collect();
    let mut expected: BTreeMap<String, Option<String>> =
        reference.iter().map(|(name, value)| (name.clone(), Some(value.clone()))).collect();
    for (index, other) in VARIABLES.iter().enumerate().filter(|(_, other)| other.is_for(row, cell)) {
        for name in other.variables {
            if reference.get(*name) != page.get(*name) {
                seen.insert(index);
            }
            match other.now {
                Now::Absent => drop(expected.remove(*name)),
                Now::Any => drop(expected.insert((*name).into(), None)),
                Now::Is(value) => {
                    let value = value.replace("@DIR@", matrix.servers.text("").trim_end_matches('/'));
                    expected.insert((*name).into(), Some(value));
                }
            }
        }
    }
    let names: BTreeSet<_> = expected.keys().chain(page.keys()).collect();
    let mut problems = Vec::new();
    for name in names {
        let is_so = match (expected.get(name), page.get(name)) {
            (Some(None), Some(_)) => true,
            (Some(Some(expected)), Some(came)) => expected == came,
            (expected, came) => expected.is_none() && came.is_none(),
        };
        if !is_so {
            problems.push(format!("{name}: expected {:?}, got {:?}", expected.get(name), page.get(name)));
        }
    }
    problems
}

#[test]
fn a_hundred_megabytes_pass_each_way_from_every_from_and_to_every_to() {
    let matrix = Matrix::shared();
    // Each way in and each way out once, and not each pair of them.
    let is_chosen = |cell: &&Cell| {
        let from = FROM.iter().position(|from| from.name == cell.from.name).expect("it is one of them");
        let to = TO.iter().position(|to| to.name == cell.to.name).expect("it is one of them");
        to % FROM.len() == from || (from == FROM.len() - 1 && to == 0)
    };
    let chosen: Vec<&Cell> = matrix.cells.iter().filter(is_chosen).collect();
    for name in FROM.iter().map(|from| from.name).chain(TO.iter().map(|to| to.name)) {
        assert!(chosen.iter().any(|cell| cell.from.name == name || cell.to.name == name), "{name}");
    }
    no_problems(at_once(&chosen, |cell| {
        let up = Asked { path: "/app/digest", body: Some((LARGE, Announced::Yes)), ..POST };
        let down = Asked { path: "/app/bytes", query: "n=100000000", ..GET };
        let unannounced = Asked { body: Some((LARGE, Announced::No)), ..up };
        let asked = match cell.to.far {
            Far::Application if cell.from.protocol == Protocol::Cgi => vec![up, down],
            Far::Application => vec![up, unannounced, down],
            Far::Echo => vec![up],
            Far::Files => vec![Asked { path: "/large.bin", ..GET }],
            Far::Environ => vec![],
        };
        let mut problems = Vec::new();
        for asked in &asked {
            let came = cell.begin(asked).run(asked).expect("an answer");
            let is_so = match (cell.to.far, asked.method) {
                (Far::Files, _) => came.length == LARGE,
                (Far::Application, "POST") => came.text() == table::digest(LARGE),
                _ => format!("{} {}\n", came.length, came.sha256) == table::digest(LARGE),
            };
            if !is_so || !came.is_whole || came.head.status != 200 {
                problems.push(format!(
                    "{}: {asked}: {:?}, {} bytes, {}",
                    cell.name(),
                    came.head,
                    came.length,
                    came.is_whole
                ));
            }
        }
        problems
    }));
}

#[test]
fn both_ways_are_open_at_once_in_every_cell() {
    const PIECES: u64 = 5;
    const PIECE: u64 = 40_000;
    let matrix = Matrix::shared();
    let has_echo = |cell: &&Cell| matches!(cell.to.far, Far::Application | Far::Echo);
    let cells: Vec<&Cell> = matrix.cells.iter().filter(has_echo).collect();
    no_problems(at_once(&cells, |cell| {
        let asked = Asked { path: "/app/echo", body: Some((PIECES * PIECE, Announced::Yes)), ..POST };
        let exchange = cell.begin(&asked);
        let (mut up, mut down) = (exchange.up, exchange.down);
        let pieces: Vec<u8> = blocks(PIECES * PIECE).flatten().collect();
        let mut problems = Vec::new();
        // Each piece is sent when the one before it has come back.
        for (number, piece) in pieces.chunks(PIECE as usize).enumerate() {
            up.piece(piece).expect("the bridge takes more");
            if number == 0 {
                match down.head() {
                    Some(head) if head.status == 200 => {}
                    other => return vec![format!("{}: {other:?}", cell.name())],
                }
            }
            let mut came = Vec::new();
            while came.len() < piece.len() {
                match down.piece() {
                    Piece::Data(data) => came.extend(data),
                    Piece::End { is_whole } => {
                        return vec![format!("{}: the end in piece {number}, whole: {is_whole}", cell.name())];
                    }
                }
            }
            if came != piece {
                problems.push(format!("{}: piece {number} is another", cell.name()));
            }
        }
        up.end().expect("the bridge takes the end");
        if !matches!(down.piece(), Piece::End { is_whole: true }) {
            problems.push(format!("{}: it is not whole", cell.name()));
        }
        problems
    }));
}

/// How a client leaves.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    /// It closes its connection, or the web server what it reads from.
    Closes,
    /// ABORT_REQUEST.
    Aborts,
    /// The web server ends the CGI program.
    Ends,
}

#[test]
fn the_application_is_cancelled_when_the_client_leaves_in_every_cell() {
    let matrix = Matrix::shared();
    let cells: Vec<&Cell> = matrix.cells.iter().filter(|cell| cell.to.far == Far::Application).collect();
    let servers = &matrix.servers;
    let program = servers.scratch.path("cgi-bin/app");
    no_problems(at_once(&cells, |cell| {
        let ways: &[Leaving] = match cell.from.protocol {
            Protocol::Http => &[Leaving::Closes],
            Protocol::FastCgi => &[Leaving::Closes, Leaving::Aborts],
            Protocol::Cgi => &[Leaving::Closes, Leaving::Ends],
        };
        let mut problems = Vec::new();
        for leaving in ways {
            let mark = servers.text(&format!("marks/{}-{leaving:?}", cell.name().replace(['/', ':', ' '], "-")));
            let query: &'static str = Box::leak(format!("file={mark}").into_boxed_str());
            let mut exchange = cell.begin(&Asked { path: "/app/linger", query, ..GET });
            exchange.up.end().expect("the bridge takes the end");
            assert_eq!(exchange.down.head().map(|head| head.status), Some(200), "{}", cell.name());
            assert!(matches!(exchange.down.piece(), Piece::Data(_)), "{}", cell.name());
            let is_script = cell.to.name.starts_with("cgi:");
            // A script that is ended by a signal writes no mark, but then there is none any more.
            let is_over = || if is_script { !runs(&program, &mark) } else { Path::new(&mark).exists() };
            if is_over() {
                problems.push(format!("{}, {leaving:?}: the application does not run", cell.name()));
                continue;
            }
            let mut process = None;
            match leaving {
                Leaving::Closes => {
                    process = exchange.down.process.take();
                    drop(exchange);
                }
                Leaving::Aborts => {
                    exchange.up.abort();
                    while matches!(exchange.down.piece(), Piece::Data(_)) {}
                }
                Leaving::Ends => {
                    process = exchange.down.process.take();
                    kill_process(Pid::from_child(process.as_ref().unwrap()), Signal::TERM).expect("it runs");
                }
            }
            let began = Instant::now();
            while !is_over() {
                if began.elapsed() > bridge::SOON {
                    problems.push(format!("{}, {leaving:?}: the application still runs", cell.name()));
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            if let Some(mut process) = process {
                let _ = process.wait();
            }
        }
        problems
    }));
}

/// Whether a process of this program runs for the request with this in its query.
fn runs(program: &Path, mark: &str) -> bool {
    let has = |path: &Path| {
        fs::read_link(path.join("exe")).is_ok_and(|exe| exe == program)
            && fs::read(path.join("environ")).is_ok_and(|text| String::from_utf8_lossy(&text).contains(mark))
    };
    fs::read_dir("/proc").expect("there is a list of processes").flatten().any(|entry| has(&entry.path()))
}

#[test]
fn who_takes_too_long_is_a_504_in_every_cell() {
    let limits = ["--head-timeout", "300ms", "--kill-grace", "100ms"];
    let takes = |to: &ways::To| to.far == Far::Application;
    // The grace is for who is started here.
    let started = Matrix::start(&limits, |to| takes(to) && covers(&["cgi:", "fastcgi:exec:"], to.name));
    let reached = Matrix::start(&limits[..2], |to| takes(to) && !covers(&["cgi:", "fastcgi:exec:"], to.name));
    let cells: Vec<&Cell> = started.cells.iter().chain(&reached.cells).collect();
    no_problems(at_once(&cells, |cell| {
        let asked = Asked { path: "/app/slow", query: "ms=600000", ..GET };
        let status = cell.begin(&asked).run(&asked).map(|came| (came.head.status, came.is_whole));
        let is_so = status == Some((504, true));
        if is_so { vec![] } else { vec![format!("{}: expected 504, got {status:?}", cell.name())] }
    }));
}

#[test]
fn the_page_of_the_documentation_says_what_the_tables_say() {
    page::check();
}
