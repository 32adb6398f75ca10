//! The requests, and the answers that they get in every cell.

use super::exchange::{Announced, Asked, GET, POST};
use super::ways::Far;

/// A request and its answer.
pub struct Row {
    pub name: &'static str,
    /// At which far ends.
    pub far: Far,
    pub asked: Asked,
    pub expect: Expect,
}

/// What an answer must be.
#[derive(Debug, Clone, Copy)]
pub struct Expect {
    pub status: u16,
    pub reason: &'static str,
    /// All fields, sorted by name, but for those that belong to the way.
    pub headers: &'static [(&'static str, &'static str)],
    pub body: Body,
    pub is_whole: bool,
}

#[derive(Debug, Clone, Copy)]
pub enum Body {
    Text(&'static str),
    /// So many bytes of the pattern.
    Pattern(u64),
    /// The length and the digest of so many bytes of the pattern.
    Digest(u64),
    /// A page with this on it.
    Contains(&'static str),
    /// A page of variables, each of which is looked at.
    Environ,
}

pub const TEXT: (&str, &str) = ("content-type", "text/plain; charset=utf-8");
pub const BINARY: (&str, &str) = ("content-type", "application/octet-stream");

/// 200, whole.
pub const fn ok(headers: &'static [(&'static str, &'static str)], body: Body) -> Expect {
    Expect { status: 200, reason: "OK", headers, body, is_whole: true }
}

pub const fn status(
    status: u16,
    reason: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: Body,
) -> Expect {
    Expect { status, reason, headers, body, is_whole: true }
}

const fn application(name: &'static str, asked: Asked, expect: Expect) -> Row {
    Row { name, far: Far::Application, asked, expect }
}

const fn file(name: &'static str, asked: Asked, expect: Expect) -> Row {
    Row { name, far: Far::Files, asked, expect }
}

const fn echo(
    name: &'static str,
    length: u64,
    announced: Announced,
    headers: &'static [(&'static str, &'static str)],
) -> Row {
    let asked = Asked { path: "/", body: Some((length, announced)), ..POST };
    Row { name, far: Far::Echo, asked, expect: ok(headers, Body::Pattern(length)) }
}

const fn upload(name: &'static str, length: u64, announced: Announced) -> Row {
    let asked = Asked { path: "/app/digest", body: Some((length, announced)), ..POST };
    application(name, asked, ok(&[TEXT], Body::Digest(length)))
}

const ODD: &[(&str, &str)] = &[
    ("X-Own", "a"),
    ("X-Own", "b"),
    ("X-Empty", ""),
    ("Cookie", "c=\"d e\"; f"),
    ("X-Odd", "!#$%&'*+.^`|~,;= \u{e9}"),
    ("Authorization", "Basic YTpi"),
    ("Proxy", "http://evil.test"),
];

const ENCODED: Asked = Asked { path: "/app/environ/a%20b/%C3%A9%2Ft", query: "a=b&c=%20%2F&&=", headers: ODD, ..GET };
const FORM: Asked = Asked {
    headers: &[("Content-Type", "application/x-www-form-urlencoded")],
    body: Some((300, Announced::Yes)),
    ..POST
};

pub const ROWS: &[Row] = &[
    // What the application is told.
    application("a plain GET", GET, ok(&[TEXT], Body::Environ)),
    application("odd fields and an encoded path", ENCODED, ok(&[TEXT], Body::Environ)),
    application("a form", FORM, ok(&[TEXT], Body::Environ)),
    application("a form, unannounced", Asked { body: Some((300, Announced::No)), ..FORM }, ok(&[TEXT], Body::Environ)),
    Row { name: "a plain GET", far: Far::Environ, asked: GET, expect: ok(&[TEXT], Body::Environ) },
    Row {
        name: "odd fields and an encoded path",
        far: Far::Environ,
        asked: ENCODED,
        expect: ok(&[TEXT], Body::Environ),
    },
    // Bodies up.
    upload("an upload of nothing", 0, Announced::Yes),
    upload("an upload of one byte", 1, Announced::Yes),
    upload("an upload of a full record", 65_535, Announced::Yes),
    upload("an upload of one byte more", 65_536, Announced::Yes),
    upload("an upload of 1 MiB", 1 << 20, Announced::Yes),
    upload("an upload of nothing, unannounced", 0, Announced::No),
    upload("an upload of 1 MiB, unannounced", 1 << 20, Announced::No),
    application(
        "an upload that nobody reads",
        Asked { path: "/app/ignore-input", body: Some((1 << 20, Announced::Yes)), ..POST },
        ok(&[("content-length", "8"), TEXT], Body::Text("ignored\n")),
    ),
    echo("an echo of nothing", 0, Announced::Yes, &[("content-length", "0"), BINARY]),
    echo("an echo of 1 MiB", 1 << 20, Announced::Yes, &[("content-length", "1048576"), BINARY]),
    echo("an echo of 1 MiB, unannounced", 1 << 20, Announced::No, &[BINARY]),
    // Bodies down.
    application(
        "a download of nothing",
        Asked { path: "/app/bytes", query: "n=0", ..GET },
        ok(&[("content-length", "0"), BINARY], Body::Text("")),
    ),
    application(
        "a download of 1 MiB",
        Asked { path: "/app/bytes", query: "n=1048576", ..GET },
        ok(&[("content-length", "1048576"), BINARY], Body::Pattern(1 << 20)),
    ),
    application(
        "a download of 1 MiB, unannounced",
        Asked { path: "/app/bytes", query: "n=1048576&length=0", ..GET },
        ok(&[BINARY], Body::Pattern(1 << 20)),
    ),
    application(
        "HEAD",
        Asked { method: "HEAD", path: "/app/bytes", query: "n=1000", ..GET },
        ok(&[("content-length", "1000"), BINARY], Body::Text("")),
    ),
    application(
        "HEAD, with repeated fields",
        Asked { method: "HEAD", path: "/app/headers", ..GET },
        ok(HEADERS.split_at(1).1, Body::Text("")),
    ),
    // Heads.
    application("repeated fields", Asked { path: "/app/headers", ..GET }, ok(HEADERS, Body::Text("headers\n"))),
    application(
        "a reason of one's own",
        Asked { path: "/app/status", query: "code=418&reason=Short%20and%20stout", ..GET },
        status(418, "Short and stout", &[("content-length", "4"), TEXT], Body::Text("418\n")),
    ),
    application(
        "204",
        Asked { path: "/app/status", query: "code=204", ..GET },
        status(204, "No Content", &[("x-empty", "yes")], Body::Text("")),
    ),
    application(
        "304",
        Asked { path: "/app/status", query: "code=304", ..GET },
        status(304, "Not Modified", &[("x-empty", "yes")], Body::Text("")),
    ),
    application(
        "a redirect",
        Asked { path: "/app/redirect", query: "code=303&to=/x", ..GET },
        status(303, "See Other", &[("content-length", "10"), TEXT, ("location", "/x")], Body::Text("elsewhere\n")),
    ),
    // Failures.
    application(
        "an error before the head",
        Asked { path: "/app/error-before", ..GET },
        status(500, "Internal Server Error", &[TEXT], Body::Contains("500")),
    ),
    application(
        "an error after the head",
        Asked { path: "/app/error-after", query: "n=100000", ..GET },
        Expect { is_whole: false, ..ok(&[BINARY], Body::Pattern(100_000)) },
    ),
    application(
        "half of what was announced",
        Asked { path: "/app/short", ..GET },
        Expect {
            is_whole: false,
            ..ok(&[("content-length", "100"), TEXT], Body::Text("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"))
        },
    ),
    // Files.
    file("a file", Asked { path: "/file.txt", ..GET }, ok(FILE, Body::Text("a file\n"))),
    file("HEAD of a file", Asked { method: "HEAD", path: "/file.txt", ..GET }, ok(FILE, Body::Text(""))),
    file(
        "a part of a file",
        Asked { path: "/file.txt", headers: &[("Range", "bytes=2-5")], ..GET },
        status(
            206,
            "Partial Content",
            &[RANGES, ("content-length", "4"), ("content-range", "bytes 2-5/7"), TEXT, ETAG, MODIFIED],
            Body::Text("file"),
        ),
    ),
    file(
        "a file that the client has",
        Asked { path: "/file.txt", headers: &[("If-None-Match", ETAG.1)], ..GET },
        status(304, "Not Modified", &[RANGES, ETAG, MODIFIED], Body::Text("")),
    ),
    file("no file", Asked { path: "/none", ..GET }, status(404, "Not Found", &[TEXT], Body::Contains("404"))),
    file(
        "a POST to a file",
        Asked { path: "/file.txt", body: Some((300, Announced::Yes)), ..POST },
        status(405, "Method Not Allowed", &[("allow", "GET, HEAD"), TEXT], Body::Contains("405")),
    ),
];

const HEADERS: &[(&str, &str)] = &[
    ("content-length", "8"),
    TEXT,
    ("set-cookie", "a=1; Path=/"),
    ("set-cookie", "b=2"),
    ("set-cookie", "a=1; Path=/"),
    ("x-odd", "a,b;c=\"d e\""),
];

const RANGES: (&str, &str) = ("accept-ranges", "bytes");
const ETAG: (&str, &str) = ("etag", "\"3b9aca00.0-7\"");
const MODIFIED: (&str, &str) = ("last-modified", "Sun, 09 Sep 2001 01:46:40 GMT");
const FILE: &[(&str, &str)] = &[RANGES, ("content-length", "7"), TEXT, ETAG, MODIFIED];
