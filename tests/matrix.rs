//! Every way in with every way out: the same requests through `gatespan bridge FROM TO`, with the same application at the far end, get
//! the same answers, and the application is told the same, but for what is listed here with its reason.
#![cfg(feature = "cli")]

mod support;
#[path = "support/bridge.rs"]
mod bridge;
#[path = "support/fastcgi_client.rs"]
mod fastcgi_client;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use bridge::{Bridge, PORT};
use gatespan::protocol::fastcgi::Role;
use sha2::{Digest, Sha256};
use support::pattern::{blocks, hexadecimal};
use support::process::{Listening, Scratch, Server, free_address};

/// A request, before any protocol.
#[derive(Debug, Clone)]
struct Asked {
    method: &'static str,
    path: &'static str,
    query: &'static str,
    /// As HTTP has them; the other ways in get the variables that a web server makes of them.
    headers: &'static [(&'static str, &'static str)],
    /// How long the body is, and whether that is said before.
    body: Option<(u64, Announced)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Announced {
    Yes,
    No,
}

const GET: Asked = Asked { method: "GET", path: "/environ", query: "", headers: &[], body: None };

/// What came for it, after any protocol.
#[derive(Debug, PartialEq, Eq)]
struct Came {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Whether it can be seen to be all of it.
    is_whole: bool,
}

/// Fields that belong to the connection or the moment, and not to the answer: those of HTTP's framing, which the other protocols do
/// not have; the gateway's own Date and Server; and the request's name.
const OF_THE_WAY: [&str; 6] = ["connection", "date", "keep-alive", "server", "transfer-encoding", "x-request-id"];

impl Came {
    fn of(status: u16, head: &str, body: Vec<u8>, is_whole: bool) -> Self {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        let mut headers: Vec<_> = lines
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .filter(|(name, _)| name != "status" && !OF_THE_WAY.contains(&&**name))
            .collect();
        // Of fields with different names the order says nothing (RFC 9110 5.3).
        headers.sort_by(|a, b| a.0.cmp(&b.0));
        Self { status, headers, body, is_whole }
    }

    /// Of a CGI response, which begins with Status where that is not 200.
    fn of_cgi(output: &[u8], is_whole: bool) -> Self {
        let (head, body) = split(output);
        let status = head.lines().find_map(|line| line.strip_prefix("Status: ")?.get(..3)?.parse().ok());
        Self::of(status.unwrap_or(200), &head, body.to_vec(), is_whole)
    }

    fn of_http(answer: &[u8], method: &str) -> Self {
        let (head, mut rest) = split(answer);
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        let field = |name: &str| {
            head.lines().find_map(|line| line.split_once(": ").filter(|(own, _)| own.eq_ignore_ascii_case(name)))
        };
        if field("transfer-encoding").is_none() {
            let announced = field("content-length").and_then(|(_, length)| length.parse::<usize>().ok());
            let is_whole = method == "HEAD" || announced.is_none_or(|length| rest.len() == length);
            return Self::of(status, &head, rest.to_vec(), is_whole);
        }
        let mut body = Vec::new();
        while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
            let length =
                std::str::from_utf8(&rest[..at]).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
            let Some(length) = length else { break };
            if length == 0 {
                return Self::of(status, &head, body, true);
            }
            let end = (at + 2 + length).min(rest.len());
            body.extend_from_slice(&rest[at + 2..end]);
            rest = rest.get(end + 2..).unwrap_or_default();
        }
        Self::of(status, &head, body, method == "HEAD")
    }

    /// The variables of a page of them.
    fn variables(&self) -> BTreeMap<String, String> {
        let text = String::from_utf8_lossy(&self.body).into_owned();
        text.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect()
    }
}

fn split(answer: &[u8]) -> (String, &[u8]) {
    let at = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let at = at.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(&answer[..answer.len().min(500)])));
    (String::from_utf8_lossy(&answer[..at]).into_owned(), &answer[at + 4..])
}

/// Where requests come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Http,
    FastCgi,
    Cgi,
}

/// A cell of the matrix: a bridge that runs, or for CGI the command line of one.
struct Cell {
    name: String,
    from: From,
    to: String,
    bridge: Option<Bridge>,
    socket: String,
}

impl Cell {
    fn new(scratch: &Scratch, from: From, to: &str, number: usize) -> Self {
        let socket = scratch.path(&format!("front-{number}.sock")).display().to_string();
        let bridge = match from {
            From::Http => Some(Bridge::start(&[PORT, to])),
            From::FastCgi => Some(Bridge::start(&[&format!("fastcgi:{socket}"), to])),
            From::Cgi => None,
        };
        let scheme = to.split('/').next().unwrap_or_default();
        Self { name: format!("{from:?} to {scheme}"), from, to: to.to_owned(), bridge, socket }
    }

    fn ask(&self, asked: &Asked) -> Came {
        match (self.from, &self.bridge) {
            (From::Http, Some(bridge)) => over_http(&bridge.place, asked),
            (From::FastCgi, _) => over_fastcgi(&self.socket, asked),
            _ => as_cgi(&self.to, asked),
        }
    }
}

fn over_http(place: &str, asked: &Asked) -> Came {
    let target = if asked.query.is_empty() { asked.path.to_owned() } else { format!("{}?{}", asked.path, asked.query) };
    let mut head = format!("{} {target} HTTP/1.1\r\nHost: example.test\r\nConnection: close\r\n", asked.method);
    for (name, value) in asked.headers {
        head += &format!("{name}: {value}\r\n");
    }
    match asked.body {
        Some((length, Announced::Yes)) => head += &format!("Content-Length: {length}\r\n"),
        Some((_, Announced::No)) => head += "Transfer-Encoding: chunked\r\n",
        None => {}
    }
    let mut stream = TcpStream::connect(place).unwrap();
    let mut writing = stream.try_clone().unwrap();
    let body = asked.body;
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        writing.write_all(format!("{head}\r\n").as_bytes())?;
        let Some((length, announced)) = body else { return Ok(()) };
        for block in blocks(length) {
            match announced {
                Announced::Yes => writing.write_all(&block)?,
                Announced::No => {
                    writing.write_all(&[format!("{:x}\r\n", block.len()).as_bytes(), &block, b"\r\n"].concat())?;
                }
            }
        }
        if announced == Announced::No { writing.write_all(b"0\r\n\r\n") } else { Ok(()) }
    });
    let mut answer = Vec::new();
    // A cut answer may end in a reset.
    let _ = stream.read_to_end(&mut answer);
    // Who has answered need not read all of it.
    let _ = writer.join();
    Came::of_http(&answer, asked.method)
}

/// What a web server says of a request to FastCGI and CGI programs.
fn variables(asked: &Asked) -> Vec<(String, String)> {
    let target = if asked.query.is_empty() { asked.path.to_owned() } else { format!("{}?{}", asked.path, asked.query) };
    let mut variables: Vec<(String, String)> = [
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("REQUEST_METHOD", asked.method),
        ("SCRIPT_NAME", ""),
        ("PATH_INFO", asked.path),
        ("QUERY_STRING", asked.query),
        ("REQUEST_URI", &target),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("SERVER_NAME", "example.test"),
        ("SERVER_PORT", "80"),
        ("SERVER_ADDR", "127.0.0.1"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("HTTP_HOST", "example.test"),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into();
    for (name, value) in asked.headers {
        let name = match *name {
            "Content-Type" => "CONTENT_TYPE".to_owned(),
            name => format!("HTTP_{}", name.to_ascii_uppercase().replace('-', "_")),
        };
        match variables.iter_mut().find(|(own, _)| *own == name) {
            // As RFC 3875 4.1.18 joins fields of one name.
            Some((_, values)) => *values += &format!(", {value}"),
            None => variables.push((name, (*value).into())),
        }
    }
    if let Some((length, Announced::Yes)) = asked.body {
        variables.push(("CONTENT_LENGTH".into(), length.to_string()));
    }
    variables
}

fn over_fastcgi(socket: &str, asked: &Asked) -> Came {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_nonblocking(true).unwrap();
    let answer = runtime.block_on(async {
        let mut client = fastcgi_client::Client::new(tokio::net::UnixStream::from_std(stream).unwrap());
        let variables = variables(asked);
        let params: Vec<_> = variables.iter().map(|(name, value)| (&**name, &**value)).collect();
        let id = client.begin(Role::Responder, false, &params);
        for block in blocks(asked.body.map_or(0, |(length, _)| length)) {
            client.end.stdin(id, block.into());
        }
        client.end.end_stdin(id);
        client.answer(id).await
    });
    Came::of_cgi(&answer.stdout, answer.is_complete())
}

fn as_cgi(to: &str, asked: &Asked) -> Came {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatespan"));
    command.args(["bridge", "cgi:", to]).env_clear().envs(variables(asked)).env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let length = asked.body.map_or(0, |(length, _)| length);
    let writer = std::thread::spawn(move || blocks(length).try_for_each(|block| stdin.write_all(&block)));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join();
    Came::of_cgi(&output.stdout, output.status.success())
}

/// The far ends, all of one application, and all ways to them.
fn matrix() -> (Scratch, Vec<Server>, Vec<Cell>) {
    let scratch = Scratch::new();
    let socket = scratch.path("app.sock");
    let address = free_address();
    let program = scratch.path("cgi-bin/app").display().to_string();
    let servers = vec![
        scratch.application(&Listening::Unix(socket.clone()), &[]),
        scratch.application(&Listening::Http(address), &[]),
    ];
    let fastcgi = format!("fastcgi:{}", socket.display());
    // FROM cgi: does not start programs, so that these answer behind the others alone.
    let exec = format!("fastcgi:exec:{program}");
    let mut cells = Vec::new();
    for to in [&format!("cgi:{program}"), &fastcgi, &exec, &format!("http://{address}")] {
        for from in [From::Http, From::FastCgi, From::Cgi] {
            if from != From::Cgi || *to != exec {
                cells.push(Cell::new(&scratch, from, to, cells.len()));
            }
        }
    }
    (scratch, servers, cells)
}

/// Variables that may differ from cell to cell, each for a reason.
const DIFFERENT: &[&str] = &[
    // The way's own.
    "SERVER_SOFTWARE",
    "REMOTE_PORT",
    "SERVER_PORT",
    "HTTP_CONNECTION",
    "HTTP_X_REQUEST_ID",
    "REQUEST_SCHEME",
    // A script is told where it is, where programs are, and, which php-cgi asks for, that a web server has found it.
    "SCRIPT_FILENAME",
    "PATH",
    "REDIRECT_STATUS",
    // An HTTP server is told of the client by fields.
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_HOST",
    "HTTP_X_FORWARDED_PORT",
    "HTTP_X_FORWARDED_PROTO",
    "HTTP_VIA",
];

/// Of the bridge's own environment scripts get these, if there are any.
const INHERITED: [&str; 3] = ["LANG", "TZ", "HOSTNAME"];

#[test]
fn the_same_request_gets_the_same_answer_in_every_cell() {
    let (_scratch, _servers, cells) = matrix();
    let announced = |length| Some((length, Announced::Yes));
    let digest = |length| {
        let mut hash = Sha256::new();
        blocks(length).for_each(|block| hash.update(&block));
        format!("{length} {}\n", hexadecimal(&hash.finalize()))
    };
    let odd: &[(&str, &str)] =
        &[("X-Own", "a"), ("X-Own", "b"), ("Cookie", "c=\"d e\"; f"), ("X-Odd", "!#$%&'*+.^`|~,;=")];
    let requests = [
        (GET, None),
        (Asked { query: "a=b&c=%20%2F", headers: odd, ..GET }, None),
        (Asked { path: "/headers", ..GET }, Some("headers\n".to_owned())),
        (Asked { method: "HEAD", path: "/headers", ..GET }, Some(String::new())),
        (Asked { path: "/status", query: "code=418&reason=Odd", ..GET }, Some("418\n".to_owned())),
        (Asked { path: "/status", query: "code=204", ..GET }, Some(String::new())),
        (Asked { path: "/redirect", query: "code=303&to=/x", ..GET }, Some("elsewhere\n".to_owned())),
        (Asked { method: "POST", path: "/digest", body: announced(0), ..GET }, Some(digest(0))),
        (Asked { method: "POST", path: "/digest", body: announced(1 << 20), ..GET }, Some(digest(1 << 20))),
        (
            Asked { method: "POST", path: "/ignore-input", body: announced(1 << 20), ..GET },
            Some("ignored\n".to_owned()),
        ),
        (Asked { method: "POST", path: "/digest", body: Some((1 << 20, Announced::No)), ..GET }, Some(digest(1 << 20))),
        (Asked { path: "/bytes", query: "n=1048576", ..GET }, None),
        (Asked { path: "/bytes", query: "n=1048576&length=0", ..GET }, None),
    ];
    let mut problems = Vec::new();
    let mut unseen: BTreeSet<&str> = DIFFERENT.iter().copied().collect();
    for (asked, expected) in &requests {
        let mut first: Option<(&str, Came)> = None;
        for cell in &cells {
            // A CGI script reads no more than CONTENT_LENGTH says (RFC 3875 4.2), and without that nothing.
            if cell.from == From::Cgi && matches!(asked.body, Some((_, Announced::No))) {
                continue;
            }
            let mut came = cell.ask(asked);
            let is_environ = asked.path == "/environ";
            // How long a page of variables is depends on these; how much memory a process has on the process; Via is a proxy's.
            came.headers
                .retain(|(name, _)| name != "x-memory" && name != "via" && !(is_environ && name == "content-length"));
            if !came.is_whole {
                problems.push(format!("{}: {asked:?} was cut", cell.name));
            }
            if let Some(expected) = expected
                && came.body != expected.as_bytes()
            {
                problems.push(format!("{}: {asked:?}: {:?}", cell.name, String::from_utf8_lossy(&came.body)));
            }
            let Some((other, usual)) = &first else {
                first = Some((&cell.name, came));
                continue;
            };
            if (usual.status, &usual.headers) != (came.status, &came.headers)
                || (!is_environ && usual.body != came.body)
            {
                let (a, b) = ((usual.status, &usual.headers), (came.status, &came.headers));
                problems.push(format!("{asked:?}: {other}: {a:?}; {}: {b:?}", cell.name));
            }
            if is_environ {
                let (usual, own) = (usual.variables(), came.variables());
                for name in usual.keys().chain(own.keys()).collect::<BTreeSet<_>>() {
                    let is_inherited = INHERITED.contains(&&**name) || name.starts_with("LC_");
                    if usual.get(name) == own.get(name) || is_inherited {
                        continue;
                    }
                    let (a, b) = (usual.get(name), own.get(name));
                    match DIFFERENT.iter().find(|other| *other == name) {
                        Some(name) => drop(unseen.remove(name)),
                        None => problems.push(format!("{name} is {a:?} in {other} and {b:?} in {}", cell.name)),
                    }
                }
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(unseen.is_empty(), "listed as different, and the same everywhere: {unseen:?}");
}

#[test]
fn what_fails_before_the_head_is_an_error_and_after_it_a_visible_cut_in_every_cell() {
    let (_scratch, _servers, cells) = matrix();
    let mut problems = Vec::new();
    for cell in &cells {
        let before = cell.ask(&Asked { path: "/error-before", ..GET });
        // What a program answers itself is passed on; one that only ends is a bad gateway.
        if !matches!(before.status, 500 | 502) || !before.is_whole {
            problems.push(format!("{}: before: {} {}", cell.name, before.status, before.is_whole));
        }
        let after = cell.ask(&Asked { path: "/error-after", query: "n=100000", ..GET });
        // Only the exit code would tell of a script, which many end with whatever their last command did.
        let is_told = !cell.to.starts_with("cgi:");
        if after.status != 200 || (after.is_whole && is_told) {
            problems.push(format!("{}: after: {} {}", cell.name, after.status, after.is_whole));
        }
        let short = cell.ask(&Asked { path: "/short", ..GET });
        if short.status != 200 || short.is_whole {
            problems.push(format!("{}: short: {} {}", cell.name, short.status, short.is_whole));
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn the_application_hears_of_it_when_the_client_leaves_in_every_cell() {
    let (scratch, _servers, cells) = matrix();
    for (number, cell) in cells.iter().enumerate().filter(|(_, cell)| cell.from == From::Http) {
        // A script that is ended by a signal writes no mark; what is left of it is the script host's tests' affair.
        if cell.to.starts_with("cgi:") {
            continue;
        }
        let mark = scratch.path(&format!("marks/{number}"));
        let mut stream = TcpStream::connect(&cell.bridge.as_ref().unwrap().place).unwrap();
        let request = format!("GET /linger?tick=1&file={} HTTP/1.1\r\nHost: h\r\n\r\n", mark.display());
        stream.write_all(request.as_bytes()).unwrap();
        assert_eq!(stream.read(&mut [0; 12]).unwrap(), 12, "{}", cell.name);
        drop(stream);
        let began = std::time::Instant::now();
        while !mark.exists() {
            assert!(began.elapsed() < bridge::SOON, "{}", cell.name);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
