//! The table: what any front with the application behind it has to do, request by request, and then the scenes that
//! are more than one request. Where a front differs for reasons of its own, its expectation stands beside the usual one.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::client::{Answer, Client, Upload, get, is_hanging};
use super::process::{memory, note};
use super::{Front, PerFront, pattern};

/// One request and its answer. The application is at `/app` behind every front.
pub struct Row {
    name: &'static str,
    method: &'static str,
    target: &'static str,
    headers: &'static [(&'static str, &'static str)],
    upload: Upload,
    expect: PerFront<Expect>,
}

/// What an answer must be.
#[derive(Clone, Debug)]
pub struct Expect {
    status: u16,
    reason: Option<&'static str>,
    /// All values of each of these, in order, joined with ` | `; empty: the header is not there.
    headers: &'static [(&'static str, &'static str)],
    body: Content,
}

/// What an answer's body must be. All but `Cut` must also be whole.
#[derive(Clone, Debug)]
pub enum Content {
    Any,
    /// Whole or not.
    Whatever,
    Exactly(&'static str),
    /// These lines, and none that starts with those.
    Lines(&'static [&'static str], &'static [&'static str]),
    /// So many bytes of the pattern.
    Pattern(u64),
    /// What `/digest` says when so many bytes of the pattern have arrived.
    Digest(u64),
    /// At most so many bytes, and the client can see that it is not all.
    Cut(u64),
    /// Nothing, for longer than anything takes that ends at all: what others do and we must not.
    Hangs,
    /// Something that is no answer at all: others pass on what no client understands.
    Broken,
}

pub use Content::{Any, Broken, Cut, Digest, Exactly, Hangs, Lines, Pattern, Whatever};

/// The SHA-256 of nothing, as `/environ` reports a request without a body.
const NO_BODY: &str = "0 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

pub static TABLE: &[Row] = &[
    // The request as variables: RFC 3875 section 4.1.
    get_row("a plain GET", "/app/environ")
        .expect(lines(&[
            "GATEWAY_INTERFACE=CGI/1.1",
            "REQUEST_METHOD=GET",
            "SCRIPT_NAME=/app",
            "PATH_INFO=/environ",
            "SERVER_PROTOCOL=HTTP/1.1",
            "REMOTE_ADDR=127.0.0.1",
            NO_BODY,
        ]))
        .except(&[("http", PLAIN_AT_THE_ROOT, ROOT), (BRIDGED_TO_HTTP, PLAIN_AT_THE_ROOT, ROOT)]),
    get_row("no PATH_INFO", "/app").expect(lines(&["SCRIPT_NAME=/app", NO_BODY])).except(&[
        ("http", lines(&["SCRIPT_NAME=", "PATH_INFO=/app"]), ROOT),
        (BRIDGED_TO_HTTP, lines(&["SCRIPT_NAME=", "PATH_INFO=/app"]), ROOT),
    ]),
    get_row("a query string stays as it is", "/app/environ?a=1&b=%20x+y&&c=%26")
        .expect(lines(&["QUERY_STRING=a=1&b=%20x+y&&c=%26", NO_BODY])),
    get_row("an encoded path is decoded in PATH_INFO", "/app/environ/a%20b/%C3%A9t%C3%A9")
        .expect(lines(&["PATH_INFO=/environ/a b/été", "REQUEST_URI=/app/environ/a%20b/%C3%A9t%C3%A9"]))
        .except(&[
            ("http", lines(&["PATH_INFO=/app/environ/a b/été"]), ROOT),
            (BRIDGED_TO_HTTP, lines(&["PATH_INFO=/app/environ/a b/été"]), ROOT),
        ]),
    get_row("an encoded slash", "/app/environ/a%2Fb").expect(lines(&["PATH_INFO=/environ/a/b"])).except(&[
        (BRIDGED_TO_HTTP, lines(&["PATH_INFO=/app/environ/a/b"]), ROOT),
        ("apache/proxy_fcgi", lines(&["PATH_INFO=/environ/a%2Fb"]), "AllowEncodedSlashes NoDecode leaves it encoded"),
        ("http", lines(&["PATH_INFO=/app/environ/a/b"]), ROOT),
    ]),
    get_row("a path of UTF-8 as it is", "/app/environ/été").expect(lines(&["PATH_INFO=/environ/été"])).except(&[
        ("haproxy", status(400), "HAProxy takes only ASCII in a request line"),
        ("http", lines(&["PATH_INFO=/app/environ/été"]), ROOT),
        (BRIDGED_TO_HTTP, lines(&["PATH_INFO=/app/environ/été"]), ROOT),
    ]),
    get_row("headers become HTTP_ variables", "/app/environ")
        .headers(&[("X-Odd", "a,b;c=\"d e\""), ("Authorization", "Basic YTpi"), ("Accept", "text/*")])
        .expect(lines(&["HTTP_X_ODD=a,b;c=\"d e\"", "HTTP_AUTHORIZATION=Basic YTpi", "HTTP_ACCEPT=text/*"])),
    get_row("repeated headers are one variable", "/app/environ")
        .headers(&[("X-A", "1"), ("X-A", "2")])
        .expect(lines(&["HTTP_X_A=1, 2"])),
    get_row("repeated cookies are one variable", "/app/environ")
        .headers(&[("Cookie", "a=1"), ("Cookie", "b=2")])
        .expect(lines(&["HTTP_COOKIE=a=1; b=2"]))
        .except(&[("apache", lines(&["HTTP_COOKIE=a=1, b=2"]), "Apache joins all repeated headers with a comma")]),
    get_row("Proxy: does not become HTTP_PROXY", "/app/environ")
        .headers(&[("Proxy", "http://evil.example")])
        .expect(status(200).body(Lines(&["REQUEST_METHOD=GET"], &["HTTP_PROXY"]))),
    // The request's body.
    row("a form", "POST", "/app/environ")
        .headers(&[("Content-Type", "application/x-www-form-urlencoded")])
        .upload(Upload::Text("a=1&b=2"))
        .expect(status(200).body(Lines(
            &[
                "REQUEST_METHOD=POST",
                "CONTENT_LENGTH=7",
                "CONTENT_TYPE=application/x-www-form-urlencoded",
                "7 8e85be58c1c372ac29fe7bfa80d8ddcbd04a4032c7b51c1c026d67c55b1ab23f",
            ],
            // PEP 3333 has no such keys.
            &["HTTP_CONTENT_"],
        ))),
    row("an upload of 0 bytes", "POST", "/app/digest").upload(Upload::Sized(0)).expect(status(200).body(Digest(0))),
    row("an upload of 1 byte", "POST", "/app/digest").upload(Upload::Sized(1)).expect(status(200).body(Digest(1))),
    row("an upload of one full record", "POST", "/app/digest")
        .upload(Upload::Sized(65_535))
        .expect(status(200).body(Digest(65_535))),
    row("an upload of one byte more", "PUT", "/app/digest")
        .upload(Upload::Sized(65_536))
        .expect(status(200).body(Digest(65_536))),
    row("an upload of 1 MB", "POST", "/app/digest")
        .upload(Upload::Sized(1_000_000))
        .expect(status(200).body(Digest(1_000_000))),
    row("an upload that awaits 100 Continue", "POST", "/app/digest")
        .headers(&[("Expect", "100-continue")])
        .upload(Upload::Sized(100_000))
        .expect(status(200).body(Digest(100_000))),
    row("a chunked upload", "POST", "/app/digest")
        .upload(Upload::Chunked(300_000))
        .expect(status(200).body(Digest(300_000)))
        .except(&[
            ("haproxy", status(400), "HAProxy has to know the length, and finds it out only for what fits its buffer"),
            ("lighttpd/*/streamed", status(411), "lighttpd wants a length unless it collects uploads first"),
        ]),
    // The answer's body.
    get_row("a download of 0 bytes", "/app/bytes?n=0").expect(status(200).body(Pattern(0))),
    get_row("a download of 1 byte", "/app/bytes?n=1")
        .expect(status(200).headers(&[("Content-Length", "1")]).body(Pattern(1))),
    get_row("a download of one full record", "/app/bytes?n=65535")
        .expect(status(200).headers(&[("Content-Length", "65535")]).body(Pattern(65_535))),
    get_row("a download of 1 MB", "/app/bytes?n=1000000")
        .expect(status(200).headers(&[("Content-Length", "1000000")]).body(Pattern(1_000_000))),
    get_row("a download of unknown length", "/app/bytes?n=1000000&length=0")
        .expect(status(200).body(Pattern(1_000_000))),
    row("HEAD has no body", "HEAD", "/app/environ").expect(status(200).body(Exactly(""))),
    row("HEAD tells the length", "HEAD", "/app/bytes?n=1000")
        .expect(status(200).headers(&[("Content-Length", "1000")]).body(Exactly(""))),
    // The answer's head: RFC 3875 section 6.
    get_row("404", "/app/status?code=404").expect(status(404).reason("Not Found")),
    get_row("204", "/app/status?code=204").expect(status(204).reason("No Content").body(Exactly(""))),
    get_row("304", "/app/status?code=304").expect(status(304).reason("Not Modified").body(Exactly(""))),
    get_row("503", "/app/status?code=503").expect(status(503).reason("Service Unavailable")),
    get_row("a reason of one's own", "/app/status?code=418&reason=Short%20and%20stout")
        .expect(status(418).reason("Short and stout"))
        .except(&[("lighttpd", status(418).reason(""), "lighttpd writes the reasons that it knows, and no others")]),
    get_row("a usual status with a reason of one's own", "/app/status?code=200&reason=Fine")
        .expect(status(200).reason("Fine"))
        .except(&[("lighttpd", status(200).reason("OK"), "lighttpd writes the reasons that it knows, and no others")]),
    get_row("a status that nobody knows", "/app/status?code=299&reason=Made%20up")
        .expect(status(299).reason("Made up"))
        .except(&[("lighttpd", status(299).reason(""), "lighttpd writes the reasons that it knows, and no others")]),
    get_row("repeated headers", "/app/headers")
        .expect(status(200).headers(&[("Set-Cookie", "a=1; Path=/ | b=2 | a=1; Path=/"), ("X-Odd", "a,b;c=\"d e\"")])),
    get_row("a redirect elsewhere", "/app/redirect?to=http%3A%2F%2Fexample.com%2Fa%3Fb%3Dc&code=302")
        .expect(status(302).headers(&[("Location", "http://example.com/a?b=c")])),
    get_row("a permanent redirect", "/app/redirect?to=http%3A%2F%2Fexample.com%2F&code=301")
        .expect(status(301).headers(&[("Location", "http://example.com/")])),
    get_row("a redirect within is the client's too", "/app/redirect?to=%2Fapp%2Fenviron&code=303")
        .expect(status(303).headers(&[("Location", "/app/environ")])),
    get_row("a redirect that keeps the method", "/app/redirect?to=%2Fapp%2Fenviron&code=307")
        .expect(status(307).headers(&[("Location", "/app/environ")])),
    // Failures.
    get_row("an error before the head", "/app/error-before").expect(status(500)),
    get_row("a panic", "/app/panic").expect(status(500)),
    get_row("an error after the head", "/app/error-after?n=100000").expect(status(200).body(Cut(100_000))).except(&[
        (
            "apache/cgid",
            status(200).body(Pattern(100_000)),
            "mod_cgid takes any end of the output for the end of the answer",
        ),
        ("apache/fcgid", status(200), "mod_fcgid puts an error page of its own behind what it has, and ends it well"),
        (
            "lighttpd/cgi",
            status(200).body(Pattern(100_000)),
            "mod_cgi takes any end of the output for the end of the answer",
        ),
        (
            "lighttpd/*/collected",
            status(200).body(Pattern(100_000)),
            "lighttpd announces the length that it has collected",
        ),
    ]),
    get_row("less than was announced", "/app/short").expect(status(200).body(Cut(50))).except(&[(
        "apache/fcgid",
        status(200),
        "mod_fcgid fills up with an error page of its own",
    )]),
    get_row("and all is well after that", "/app/slow?ms=50").expect(status(200).body(Exactly("slow\n"))),
];

/// The status where it is one this time and another the next.
pub const UNSURE: u16 = 0;

/// How long a request is looked at that is expected to hang.
const HANGING: Duration = Duration::from_secs(2);

/// A web server, the bridge, and the application as an HTTP server behind it.
const BRIDGED_TO_HTTP: &str = "*/*/*/http";

/// A plain GET where the application is at the root.
const PLAIN_AT_THE_ROOT: Expect = lines(&["REQUEST_METHOD=GET", "SCRIPT_NAME=", "PATH_INFO=/app/environ", NO_BODY]);

/// Why a variable is different without a web server in front.
const ROOT: &str = "without a web server in front, the application is at the root";

pub const fn row(name: &'static str, method: &'static str, target: &'static str) -> Row {
    let expect = PerFront { usual: status(200), differs: &[] };
    Row { name, method, target, headers: &[], upload: Upload::Nothing, expect }
}

pub const fn get_row(name: &'static str, target: &'static str) -> Row {
    row(name, "GET", target)
}

pub const fn status(status: u16) -> Expect {
    Expect { status, reason: None, headers: &[], body: Any }
}

pub const fn lines(wanted: &'static [&'static str]) -> Expect {
    status(200).body(Lines(wanted, &[]))
}

impl Row {
    pub const fn headers(mut self, headers: &'static [(&'static str, &'static str)]) -> Row {
        self.headers = headers;
        self
    }

    pub const fn upload(mut self, upload: Upload) -> Row {
        self.upload = upload;
        self
    }

    pub const fn expect(mut self, usual: Expect) -> Row {
        self.expect.usual = usual;
        self
    }

    pub const fn except(mut self, differs: &'static [(&'static str, Expect, &'static str)]) -> Row {
        self.expect.differs = differs;
        self
    }

    /// Sends it. Where `places` has a pair, its first stands in the table for what its second is on this machine: in the
    /// target and in the answer's text.
    async fn run(&self, address: SocketAddr, name: &str, places: &[(&str, &str)]) -> Result<(), String> {
        let mut client = Client::connect(address).await?;
        let expect = self.expect.named(name);
        let target = places.iter().fold(self.target.to_owned(), |target, (table, here)| target.replace(table, here));
        let sending = client.send(self.method, &target, self.headers, self.upload.clone());
        if matches!(expect.body, Hangs) {
            let came = timeout(HANGING, sending).await;
            return came.map_or(Ok(()), |came| Err(format!("expected that nothing ends, came {came:?}")));
        }
        match sending.await {
            Ok(mut answer) => {
                if !places.is_empty() && !expect.is_binary() {
                    let text = places.iter().fold(answer.text(), |text, (table, here)| text.replace(here, table));
                    answer.body = text.into_bytes();
                }
                expect.check(&answer)
            }
            // What was cut before any of it came is cut, too.
            Err(error) if matches!(expect.body, Cut(_)) && !is_hanging(&error) => Ok(()),
            Err(error) if matches!(expect.body, Broken) && !is_hanging(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Expect {
    pub const fn reason(mut self, reason: &'static str) -> Expect {
        self.reason = Some(reason);
        self
    }

    pub const fn headers(mut self, headers: &'static [(&'static str, &'static str)]) -> Expect {
        self.headers = headers;
        self
    }

    pub const fn body(mut self, body: Content) -> Expect {
        self.body = body;
        self
    }

    fn is_binary(&self) -> bool {
        matches!(self.body, Pattern(_) | Cut(_))
    }

    fn check(&self, answer: &Answer) -> Result<(), String> {
        let came = || {
            let text: String = answer.text().chars().take(if self.is_binary() { 0 } else { 700 }).collect();
            format!(
                "came {} {:?} {:?}, {} bytes, cut {:?}: {text:?}",
                answer.status, answer.reason, answer.headers, answer.length, answer.cut
            )
        };
        let fail = |what: String| Err(format!("expected {what}, {}", came()));
        if self.status != UNSURE && answer.status != self.status {
            return fail(format!("status {}", self.status));
        }
        if self.reason.is_some_and(|reason| reason != answer.reason) {
            return fail(format!("reason {:?}", self.reason));
        }
        for (name, values) in self.headers {
            if answer.values(name).join(" | ") != *values {
                return fail(format!("{name}: {values}"));
            }
        }
        if !matches!(self.body, Whatever) && answer.cut.is_some() != matches!(self.body, Cut(_)) {
            return fail(if answer.cut.is_some() { "a whole body".into() } else { "a body that is cut".into() });
        }
        let text = answer.text();
        let right = match &self.body {
            Any | Whatever => true,
            Exactly(wanted) => text == *wanted,
            Lines(wanted, unwanted) => {
                for line in *wanted {
                    if !text.lines().any(|came| came == *line) {
                        return fail(format!("the line {line}"));
                    }
                }
                !text.lines().any(|came| unwanted.iter().any(|start| came.starts_with(start)))
            }
            Pattern(length) => format!("{} {}\n", answer.length, answer.sha256) == digest(*length),
            Digest(length) => text == digest(*length),
            Cut(length) => answer.length <= *length,
            Hangs | Broken => false,
        };
        if right { Ok(()) } else { fail(format!("{:?}", self.body)) }
    }
}

/// Sends every row of the table, each on a connection of its own, and reports all that failed at once.
pub async fn rows(front: &Front) {
    let start = Instant::now();
    let failures = failures(front.address, front.name, TABLE, &[]).await;
    note(front.name, "the table", start);
    assert!(failures.is_empty(), "{} rows failed:\n{}", failures.len(), failures.join("\n"));
}

/// Sends the rows of a table, each on a connection of its own, and gives back what was not as expected of a front of that name.
pub async fn failures(address: SocketAddr, name: &str, rows: &[Row], places: &[(&str, &str)]) -> Vec<String> {
    let mut failures = Vec::new();
    for row in rows {
        let sent = Instant::now();
        let result = row.run(address, name, places).await;
        if sent.elapsed() > Duration::from_secs(1) {
            note(name, row.name, sent);
        }
        if let Err(failure) = result {
            failures.push(format!("{name}: {} ({} {}): {failure}", row.name, row.method, row.target));
        }
    }
    failures
}

/// The whole of it, in the order in which a fault is easiest to understand.
pub async fn everything(front: &Front) {
    rows(front).await;
    echo(front).await;
    log(front).await;
    events(front).await;
    leaving(front).await;
    kept(front, 1_000).await;
    at_once(front, 200).await;
    large(front, 200_000_000).await;
    unread(front).await;
}

static ECHO: PerFront<u64> = PerFront {
    usual: 1_000_000,
    differs: &[
        ("nginx", 10_000, "once the answer has begun, nginx sends no more of the upload"),
        ("apache/cgid", 10_000, "mod_cgid reads nothing before it has written all"),
        ("apache/fcgid", 10_000, "mod_fcgid reads nothing before it has written all"),
    ],
};

/// The answer begins while the upload is under way.
pub async fn echo(front: &Front) {
    let length = *ECHO.of(front);
    let mut client = Client::connect(front.address).await.expect("the server accepts connections");
    let answer = client.send("POST", "/app/echo", &[], Upload::Sized(length)).await;
    let answer = answer.unwrap_or_else(|error| panic!("{}: an echo: {error}", front.name));
    status(200).body(Pattern(length)).check(&answer).unwrap_or_else(|error| panic!("{}: {error}", front.name));
}

/// What the application writes to its errors is in the web server's log, or in its own where there is no server.
pub async fn log(front: &Front) {
    get(front.address, "/app/stderr?text=a-line-for-the-log").await.unwrap_or_else(|error| panic!("{error}"));
    let start = Instant::now();
    let found = || {
        let logs = front.logs().into_iter().filter_map(|log| fs::read(log).ok());
        logs.into_iter().any(|log| String::from_utf8_lossy(&log).contains("a-line-for-the-log"))
    };
    while !found() {
        assert!(start.elapsed() < Duration::from_secs(3), "{}: the line is in no log", front.name);
        sleep(Duration::from_millis(20)).await;
    }
}

/// How events arrive.
#[derive(Debug, PartialEq)]
enum Events {
    OneByOne,
    AllAtOnce,
}

static EVENTS: PerFront<Events> = PerFront {
    usual: Events::OneByOne,
    differs: &[("lighttpd/*/collected", Events::AllAtOnce, "lighttpd collects the whole answer first by default")],
};

/// Events arrive as they are made: the first long before the last was sent.
pub async fn events(front: &Front) {
    let answer = get(front.address, "/app/events?n=5&ms=200").await.expect("an answer comes");
    assert_eq!(answer.cut, None, "{}: {}", front.name, answer.text());
    assert_eq!(answer.text(), (0..5).map(|number| format!("data: {number}\n\n")).collect::<String>(), "{}", front.name);
    let (first, last) = (answer.arrivals[0].0, answer.arrivals[answer.arrivals.len() - 1].0);
    // 800 ms lie between the first and the last.
    let came = if last - first > Duration::from_millis(500) { Events::OneByOne } else { Events::AllAtOnce };
    assert_eq!(&came, EVENTS.of(front), "{}: {:?} between the first and the last", front.name, last - first);
}

/// How an application learns that its client has left.
#[derive(Clone, Copy)]
struct Leaving {
    /// Whether the application has to write for the web server to notice.
    ticks: bool,
    /// How soon it learns it; nothing: the web server does not look at its client while it collects the answer.
    within: Option<Duration>,
}

static LEAVING: PerFront<Leaving> = PerFront {
    usual: Leaving { ticks: false, within: Some(Duration::from_millis(1_000)) },
    differs: &[
        ("haproxy", NOTICED_BY_WRITING, "HAProxy notices that its client has left when it writes to it"),
        ("apache", NOTICED_BY_WRITING, "Apache notices that its client has left when it writes to it"),
        ("lighttpd/*/streamed", NOTICED_BY_WRITING, "lighttpd notices that its client has left when it writes to it"),
        (
            "lighttpd/*/collected",
            Leaving { ticks: true, within: None },
            "lighttpd notices that its client has left when it writes to it, which is when it has all",
        ),
    ],
};

const NOTICED_BY_WRITING: Leaving = Leaving { ticks: true, within: Some(Duration::from_millis(2_000)) };

/// A client leaves in the middle of an answer, and the application is cancelled.
pub async fn leaving(front: &Front) {
    let Leaving { ticks, within } = *LEAVING.of(front);
    let mark = front.scratch.path("marks/left");
    let target = format!("/app/linger?file={}&tick={}", mark.display(), u8::from(ticks));
    let cancelled = || fs::read(&mark).ok().as_deref() == Some(b"cancelled");
    let mut client = Client::connect(front.address).await.expect("the server accepts connections");
    let head = client.head("GET", &target, &[], Upload::Nothing);
    let Some(within) = within else {
        let head = timeout(Duration::from_millis(500), head).await;
        assert!(head.is_err(), "{}: an answer that has not ended was not collected", front.name);
        client.leave().await;
        sleep(Duration::from_millis(500)).await;
        assert!(!cancelled(), "{}: the web server noticed after all that its client has left", front.name);
        return;
    };
    let mut head = head.await.expect("the head comes");
    head.next().await.expect("the first line comes").expect("the body is not empty");
    assert!(!cancelled(), "{}: the application was cancelled with its client waiting", front.name);
    drop(head);
    client.leave().await;
    let start = Instant::now();
    while !cancelled() {
        assert!(start.elapsed() < within, "{}: the application was not cancelled within {within:?}", front.name);
        sleep(Duration::from_millis(10)).await;
    }
    note(front.name, "cancelled", start);
}

/// How many connections to the application a client's one connection to the front becomes.
#[derive(Debug, PartialEq)]
enum Kept {
    One,
    OneEach,
    NoConnections,
}

static KEPT: PerFront<Kept> = PerFront {
    usual: Kept::One,
    differs: &[
        ("nginx/*/closed", Kept::OneEach, "nginx closes each time by default"),
        ("apache/cgid", Kept::NoConnections, "a process for each request"),
        ("apache/fcgid", Kept::OneEach, "mod_fcgid never keeps connections"),
        ("apache/proxy_fcgi/tcp", Kept::OneEach, "enablereuse=off"),
        ("lighttpd/cgi", Kept::NoConnections, "a process for each request"),
        ("lighttpd/fastcgi", Kept::OneEach, "lighttpd never keeps connections"),
    ],
};

/// A thousand requests, one after the other, on one connection.
pub async fn kept(front: &Front, requests: usize) {
    let start = Instant::now();
    let mut client = Client::connect(front.address).await.expect("the server accepts connections");
    let mut connections = Vec::new();
    for number in 0..requests {
        let answer = client.get("/app/connection?ms=0").await;
        let answer = answer.unwrap_or_else(|error| panic!("{}: request {number}: {error}", front.name));
        assert_eq!((answer.status, &answer.cut), (200, &None), "{}: request {number}", front.name);
        connections.push(answer.line("connection").expect("the application names its connection"));
    }
    connections.sort();
    connections.dedup();
    let came = match connections.len() {
        1 if connections[0] == "none" => Kept::NoConnections,
        1 => Kept::One,
        different if different == requests => Kept::OneEach,
        different => panic!("{}: {different} connections for {requests} requests", front.name),
    };
    assert_eq!(&came, KEPT.of(front), "{}: connections for {requests} requests", front.name);
    note(front.name, "requests on one connection", start);
}

/// Many clients at the same time.
pub async fn at_once(front: &Front, clients: usize) {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        tasks.spawn(exchange(front.address, number));
    }
    let failures: Vec<String> = tasks.join_all().await.into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{}: {} of {clients} failed: {:?}", front.name, failures.len(), failures.first());
    note(front.name, "clients at once", start);
}

/// An upload and a download that no other client has.
async fn exchange(address: SocketAddr, number: usize) -> Result<(), String> {
    let length = 10_000 + number as u64;
    let mut client = Client::connect(address).await?;
    let answer = client.send("POST", "/app/digest", &[], Upload::Sized(length)).await?;
    status(200).body(Digest(length)).check(&answer)?;
    let answer = get(address, &format!("/app/bytes?n={length}")).await?;
    status(200).body(Pattern(length)).check(&answer)
}

/// The line that `/digest` answers with when the pattern has arrived unharmed.
pub fn digest(length: u64) -> String {
    let mut hash = Sha256::new();
    pattern::blocks(length).for_each(|block| hash.update(&block));
    format!("{length} {}\n", pattern::hexadecimal(&hash.finalize()))
}

/// The most memory that the application may have had resident, whatever the size of what passes through: 32 MiB.
const MEMORY: u64 = 32 * 1024;

/// A large upload, a large download and a large echo: all of it arrives, and none of it is held in memory.
pub async fn large(front: &Front, length: u64) {
    let start = Instant::now();
    let mark = front.scratch.path("marks/memory");
    let mut client = Client::connect(front.address).await.expect("the server accepts connections");
    let answer = client.send("POST", "/app/digest", &[], Upload::Sized(length)).await;
    let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", front.name));
    status(200).body(Digest(length)).check(&answer).unwrap_or_else(|error| panic!("{}: {error}", front.name));
    note(front.name, "a large upload", start);
    let used: u64 = answer.values("X-Memory").concat().parse().expect("the application tells its memory");
    assert!(used < MEMORY, "{}: {used} KiB for an upload of {length} bytes", front.name);

    let start = Instant::now();
    let answer = get(front.address, &format!("/app/bytes?n={length}&memory={}", mark.display())).await;
    let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", front.name));
    status(200).body(Pattern(length)).check(&answer).unwrap_or_else(|error| panic!("{}: {error}", front.name));
    note(front.name, "a large download", start);
    // The application writes it when its body is closed, which may be after the last byte has come here.
    let closed = Instant::now();
    let used = loop {
        match fs::read_to_string(&mark) {
            Ok(used) => break used,
            Err(error) => {
                assert!(closed.elapsed() < Duration::from_secs(3), "{}: {}: {error}", front.name, mark.display())
            }
        }
        sleep(Duration::from_millis(10)).await;
    };
    let used: u64 = used.parse().expect("a number of KiB");
    assert!(used < MEMORY, "{}: {used} KiB for a download of {length} bytes", front.name);

    // The application's own process, where the test knows it: it has also served all that came before.
    if let Some(application) = front.servers.iter().find(|server| server.name() == "application") {
        let used = memory(application.pid());
        assert!(used < MEMORY, "{}: {used} KiB in all", front.name);
    }
}

/// An upload that the application leaves unread: the answer arrives nevertheless.
///
/// The last of all, since HAProxy 2.6 does not let go of a request that was answered before its body had been sent: until
/// its time limit is over it goes on using the connection, closed or not.
pub async fn unread(front: &Front) {
    let mut client = Client::connect(front.address).await.expect("the server accepts connections");
    let answer = client.send("POST", "/app/ignore-input", &[], Upload::Sized(1_000_000)).await;
    let answer = answer.unwrap_or_else(|error| panic!("{}: an upload that nobody reads: {error}", front.name));
    let expect = status(200).body(Exactly("ignored\n"));
    expect.check(&answer).unwrap_or_else(|error| panic!("{}: {error}", front.name));
}
