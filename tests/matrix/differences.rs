//! What is not the same in every cell, each with its reason: the application's variables, and the answers.

use super::rows::{self, Body, Expect, Row};
use super::ways::{Cell, covers};

/// Variables that are not what [`Asked::variables`](super::exchange::Asked::variables) says.
pub struct OtherVariables {
    pub variables: &'static [&'static str],
    /// Beginnings of names: all cells that have one of these ways in and one of these ways out.
    pub from: &'static [&'static str],
    pub to: &'static [&'static str],
    /// For these requests only; for all of them where there is none.
    pub rows: &'static [&'static str],
    pub now: Now,
    pub reason: &'static str,
}

/// What a variable is instead.
#[derive(Debug, Clone, Copy)]
pub enum Now {
    Absent,
    /// It is there, with a value that is another each time.
    Any,
    /// With the folder of the test for `@DIR@`.
    Is(&'static str),
}

/// Answers that are not what the row says.
pub struct OtherAnswer {
    pub rows: &'static [&'static str],
    pub from: &'static [&'static str],
    pub to: &'static [&'static str],
    pub expect: Expect,
    /// What it is instead, in words.
    pub instead: &'static str,
    pub reason: &'static str,
}

impl OtherVariables {
    pub fn is_for(&self, row: &Row, cell: &Cell) -> bool {
        let is_row = self.rows.is_empty() || self.rows.contains(&row.name);
        is_row && covers(self.from, cell.from.name) && covers(self.to, cell.to.name)
    }
}

impl OtherAnswer {
    pub fn is_for(&self, row: &Row, cell: &Cell) -> bool {
        self.rows.contains(&row.name) && covers(self.from, cell.from.name) && covers(self.to, cell.to.name)
    }
}

/// Any way.
pub const ANY: &[&str] = &[""];

const HTTP: &[&str] = &["http:"];
const HTTP_SOCKET: &[&str] = &["http:/SOCKET"];
const HTTP_SERVERS: &[&str] = &["http:", "https:"];
const HTTP_SERVERS_ON_TCP: &[&str] = &["http://", "https:"];
const SCRIPTS: &[&str] = &["cgi:"];
const FOLDER_OF_SCRIPTS: &[&str] = &["cgi:/FOLDER/"];

const GATESPAN: &str = concat!("gatespan/", env!("CARGO_PKG_VERSION"));

/// All that is handed the request as it came in.
const NOT_HTTP_SERVERS: &[&str] = &["cgi:", "fastcgi:", "app:"];

const fn other(
    variables: &'static [&'static str],
    from: &'static [&'static str],
    to: &'static [&'static str],
) -> OtherVariables {
    OtherVariables { variables, from, to, rows: &[], now: Now::Any, reason: "" }
}

impl OtherVariables {
    const fn is(mut self, now: Now, reason: &'static str) -> Self {
        self.now = now;
        self.reason = reason;
        self
    }

    const fn only(mut self, rows: &'static [&'static str]) -> Self {
        self.rows = rows;
        self
    }
}

const UNANNOUNCED: &[&str] = &["a form, unannounced"];

/// Of two that are about the same cell the later holds.
pub const VARIABLES: &[OtherVariables] = &[
    // What FROM makes of it.
    other(&["SERVER_SOFTWARE"], HTTP, ANY).is(
        Now::Is(GATESPAN),
        "the server that took the request in is this one",
    ),
    other(&["SERVER_PORT"], &["http://"], NOT_HTTP_SERVERS).is(
        Now::Any,
        "where Host names no port it is the one that the bridge listens on; behind FastCGI and CGI the web server says it",
    ),
    other(&["REMOTE_PORT"], &["http://"], NOT_HTTP_SERVERS).is(Now::Any, "the client's own port; it is another each time"),
    other(&["REMOTE_ADDR", "SERVER_ADDR"], &["http://"], NOT_HTTP_SERVERS).is(
        Now::Is("127.0.0.1"),
        "the two ends of the client's connection, as the bridge sees them; behind FastCGI and CGI the web server says them",
    ),
    other(&["HTTP_CONNECTION"], HTTP, NOT_HTTP_SERVERS).is(
        Now::Is("close"),
        "the gateway tells all fields that came, those of the connection too; most web servers leave this one out",
    ),
    other(&["REMOTE_ADDR"], HTTP_SOCKET, NOT_HTTP_SERVERS).is(Now::Is("unix:"), "a client on a Unix socket has no address"),
    other(&["REMOTE_PORT", "SERVER_ADDR"], HTTP_SOCKET, NOT_HTTP_SERVERS).is(
        Now::Absent,
        "a client on a Unix socket has no port, and the socket no address",
    ),
    other(&["PATH"], &["cgi:"], NOT_HTTP_SERVERS).is(
        Now::Is("/usr/bin:/bin"),
        "a CGI program's environment is its request: what else the web server puts there can't be told from it, and is passed on",
    ),
    // Bodies that come without their length.
    other(&["CONTENT_LENGTH"], &["http:", "fastcgi:"], &["cgi:", "fastcgi:"]).only(UNANNOUNCED).is(
        Now::Is("300"),
        "most programs need it, and so the body is received before it is passed on; with `--request-body stream` it is not",
    ),
    other(&["CONTENT_LENGTH"], &["cgi:"], HTTP_SERVERS)
        .only(UNANNOUNCED)
        .is(Now::Is("0"), "behind CGI a body without a length is taken for empty"),
    // What scripts are told besides.
    other(&["PATH"], ANY, SCRIPTS).is(Now::Is("/usr/bin:/bin"), "where a script finds programs: of the bridge's own environment"),
    other(&["SCRIPT_FILENAME"], ANY, SCRIPTS).is(Now::Is("@DIR@/cgi-bin/app"), "the program that was found"),
    other(&["REDIRECT_STATUS"], ANY, SCRIPTS).is(Now::Is("200"), "php-cgi runs only where a web server has found the script, and this says so"),
    other(&["SCRIPT_NAME"], ANY, FOLDER_OF_SCRIPTS).is(
        Now::Is("/app"),
        "in a folder, the part of the path that led to the program; a single program has all paths, as a FastCGI server has",
    ),
    other(&["PATH_INFO"], ANY, FOLDER_OF_SCRIPTS).is(Now::Is("/environ"), "in a folder, the part of the path behind the program's"),
    other(&["PATH_INFO"], ANY, FOLDER_OF_SCRIPTS).only(&["odd fields and an encoded path"]).is(
        Now::Is("/environ/a b/\u{e9}/t"),
        "in a folder, the part of the path behind the program's",
    ),
    other(&["DOCUMENT_ROOT"], ANY, FOLDER_OF_SCRIPTS).is(Now::Is("@DIR@/cgi-bin"), "the folder"),
    other(&["PATH_TRANSLATED"], ANY, FOLDER_OF_SCRIPTS).is(
        Now::Is("@DIR@/cgi-bin/environ"),
        "PATH_INFO as a path in the folder (RFC 3875 4.1.6)",
    ),
    other(&["PATH_TRANSLATED"], ANY, FOLDER_OF_SCRIPTS).only(&["odd fields and an encoded path"]).is(
        Now::Is("@DIR@/cgi-bin/environ/a b/\u{e9}/t"),
        "PATH_INFO as a path in the folder (RFC 3875 4.1.6)",
    ),
    // What an HTTP server is told, which is a request of the bridge's own.
    other(&["SERVER_SOFTWARE"], ANY, HTTP_SERVERS).is(
        Now::Is(GATESPAN),
        "the HTTP server's own name, which is the same software in this test",
    ),
    other(&["SERVER_PORT", "REMOTE_PORT"], ANY, HTTP_SERVERS_ON_TCP).is(Now::Any, "those of the bridge's connection to the server"),
    other(&["REMOTE_ADDR", "SERVER_ADDR"], ANY, HTTP_SERVERS_ON_TCP).is(
        Now::Is("127.0.0.1"),
        "the two ends of the bridge's connection to the server: the client of an HTTP server is the bridge",
    ),
    other(&["REMOTE_ADDR"], ANY, HTTP_SOCKET).is(Now::Is("unix:"), "the client of an HTTP server is the bridge, here on a Unix socket"),
    other(&["REMOTE_PORT", "SERVER_ADDR"], ANY, HTTP_SOCKET).is(Now::Absent, "a Unix socket has neither"),
    other(&["HTTP_X_FORWARDED_FOR"], &["fastcgi:", "cgi:"], HTTP_SERVERS).is(
        Now::Is("192.0.2.7"),
        "REMOTE_ADDR as the bridge was told it",
    ),
    other(&["HTTP_X_FORWARDED_FOR"], &["http://"], HTTP_SERVERS).is(
        Now::Is("127.0.0.1"),
        "the client's address; there is none where it came over a Unix socket",
    ),
    other(&["HTTP_X_FORWARDED_HOST"], ANY, HTTP_SERVERS).is(Now::Is("example.test"), "the host that the client asked for"),
    other(&["HTTP_X_FORWARDED_PROTO"], ANY, HTTP_SERVERS).is(Now::Is("http"), "how the client came"),
    other(&["HTTP_X_FORWARDED_PORT"], ANY, HTTP_SERVERS).is(Now::Is("80"), "SERVER_PORT as the bridge was told it"),
    other(&["HTTP_X_FORWARDED_PORT"], &["http://"], HTTP_SERVERS).is(Now::Any, "the port that the bridge listens on"),
    other(&["HTTP_VIA"], ANY, HTTP_SERVERS).is(Now::Is("1.1 gatespan"), "a proxy names itself (RFC 9110 7.6.3), unless `--via off` says otherwise"),
];

const NOT_READ: &str = "a CGI program reads no more than CONTENT_LENGTH says, and without it nothing (RFC 3875 4.2)";

pub const ANSWERS: &[OtherAnswer] = &[
    OtherAnswer {
        rows: &["an upload of 1 MiB, unannounced"],
        from: &["cgi:"],
        to: &["cgi:", "fastcgi:", "http:", "https:"],
        expect: rows::ok(&[rows::TEXT], Body::Digest(0)),
        instead: "the body is taken for empty",
        reason: NOT_READ,
    },
    OtherAnswer {
        rows: &["an echo of 1 MiB, unannounced"],
        from: &["cgi:"],
        to: &["app:"],
        expect: rows::ok(&[("content-length", "0"), rows::BINARY], Body::Text("")),
        instead: "the body is taken for empty",
        reason: NOT_READ,
    },
    OtherAnswer {
        rows: &["an error after the head"],
        from: ANY,
        to: SCRIPTS,
        expect: rows::ok(&[rows::BINARY], Body::Pattern(100_000)),
        instead: "what came of it ends like a whole answer",
        reason: "only the exit code of a script tells of it, and many end with whatever their last command did; it is logged. With Content-Length the client sees it",
    },
];
