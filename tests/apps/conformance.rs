//! The application that the tests put, always the same binary, behind every web server: each of its paths shows one thing
//! that can go right or wrong between a web server and an application.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, fs, process};

use futures_util::stream::{self, StreamExt};
use gatespan::application::{Body, Environ, Error, StartResponse};
use gatespan::middleware::validate;
use sha2::{Digest, Sha256};
use tokio::time::sleep;

#[allow(dead_code, unreachable_pub, reason = "the tests' own file, of which the application uses a part")]
#[path = "../support/pattern.rs"]
mod pattern;

const TEXT: (&str, &str) = ("Content-Type", "text/plain; charset=utf-8");
const BINARY: (&str, &str) = ("Content-Type", "application/octet-stream");

fn main() -> ExitCode {
    let mut options = gatespan::gateway::Options::default();
    // One binary for all: the test of a web server that sends several requests at once asks for this.
    if env::var_os("GATESPAN_FASTCGI_MULTIPLEX").is_some_and(|value| value == "1") {
        options.fastcgi.announce_multiplexing = true;
        // HAProxy 2.6 answers 500 by itself when its buffer for a connection is full: with 64 every sixth run of its table has such an answer, with
        // 16 every fiftieth. No fewer than the recipe begins with.
        options.fastcgi.max_requests_per_connection = 8;
    }
    gatespan::run_with(validate(conformance), options)
}

/// Web servers mount it at `/app`; on a port of its own, it is at the root and sees the `/app` itself.
async fn conformance(mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
    let path = [environ.script_name(), environ.path_info()].concat();
    let path = String::from_utf8_lossy(&path).into_owned();
    let route = path.strip_prefix("/app").unwrap_or(&path).split('/').nth(1).unwrap_or_default();
    let query = Query::of(&environ);
    let plain = |text: String| -> Result<Body, Error> {
        start_response.start("200 OK", [TEXT, ("Content-Length", &text.len().to_string())])?;
        Ok(text.into())
    };
    match route {
        // The variables, and the body's length and digest.
        "" | "environ" => {
            let mut page = Vec::new();
            for (name, value) in environ.variables().iter() {
                page.extend([name, b"=", value, b"\n"].concat());
            }
            page.extend(digest(&mut environ).await?.as_bytes());
            start_response.start("200 OK", [TEXT])?;
            Ok(page.into())
        }
        // The body's length and digest; how much memory the process has had resident at most, in the head.
        "digest" => {
            let line = digest(&mut environ).await?;
            start_response.start("200 OK", [TEXT, ("X-Memory", &memory())])?;
            Ok(line.into())
        }
        // The body's length.
        "count" => {
            let mut length = 0;
            while let Some(chunk) = environ.input().chunk().await? {
                length += chunk.len();
            }
            plain(format!("{length}\n"))
        }
        // The body, while it is being read.
        "echo" => {
            start_response.start("200 OK", [BINARY])?;
            let input = environ.take_input();
            Ok(Body::stream(stream::unfold(input, |mut input| async {
                let chunk = input.chunk().await.transpose()?;
                Some((chunk, input))
            })))
        }
        // So many bytes of the pattern.
        "bytes" => {
            let length = query.number("n");
            let announced = length.to_string();
            let mut headers = vec![BINARY];
            if query.get("length") != "0" {
                headers.push(("Content-Length", &announced));
            }
            start_response.start("200 OK", headers)?;
            let mark = query.get("memory");
            Ok(Body::iter(pattern::blocks(length)).on_close(move || {
                if !mark.is_empty() {
                    write(&mark, &memory());
                }
            }))
        }
        // Events, one by one.
        "events" => {
            let (events, pause) = (query.number("n"), Duration::from_millis(query.number("ms")));
            // nginx passes such an answer on as it comes, whatever its configuration says.
            start_response.start("200 OK", [("Content-Type", "text/event-stream"), ("X-Accel-Buffering", "no")])?;
            Ok(Body::stream(stream::unfold(0, move |number| async move {
                if number == events {
                    return None;
                }
                if number > 0 {
                    sleep(pause).await;
                }
                Some((format!("data: {number}\n\n"), number + 1))
            })))
        }
        // A status, with a reason of one's own or the usual one.
        "status" => {
            let (code, reason) = (query.get("code"), query.get("reason"));
            let status = if reason.is_empty() { code.clone() } else { format!("{code} {reason}") };
            if code == "204" || code == "304" {
                start_response.start(status, [("X-Empty", "yes")])?;
                return Ok(Body::empty());
            }
            start_response.start(status, [TEXT])?;
            Ok(format!("{code}\n").into())
        }
        // A redirect.
        "redirect" => {
            start_response.start(query.get("code"), [TEXT, ("Location", &query.get("to"))])?;
            Ok("elsewhere\n".into())
        }
        // Headers that are repeated, and an odd one.
        "headers" => {
            let headers = [
                TEXT,
                ("Set-Cookie", "a=1; Path=/"),
                ("Set-Cookie", "b=2"),
                ("Set-Cookie", "a=1; Path=/"),
                ("X-Odd", "a,b;c=\"d e\""),
            ];
            start_response.start("200 OK", headers)?;
            Ok("headers\n".into())
        }
        "error-before" => Err(Error::new("the application failed before its head, as it was asked to")),
        // Fails with the head and some of the body on their way.
        "error-after" => {
            start_response.start("200 OK", [BINARY])?;
            let failure = Error::new("the application failed after its head, as it was asked to");
            Ok(Body::stream(stream::iter(pattern::blocks(query.number("n")).map(Ok)).chain(later(Err(failure)))))
        }
        // Half of what it announces.
        "short" => {
            start_response.start("200 OK", [TEXT, ("Content-Length", "100")])?;
            Ok(Body::stream(stream::iter(["x".repeat(50)]).chain(later(String::new()))))
        }
        "stderr" => {
            environ.errors().line(query.get("text"));
            plain("logged\n".to_owned())
        }
        "panic" => panic!("the application panicked, as it was asked to"),
        // Never ends by itself. It says so in a file when it is cancelled or dropped.
        "linger" => {
            start_response.start("200 OK", [TEXT, ("X-Accel-Buffering", "no")])?;
            let ticks = query.get("tick") == "1";
            let mark = CancelledMark { path: query.get("file").into() };
            let cancellation = environ.cancellation();
            let start = (mark, cancellation, true);
            Ok(Body::stream(stream::unfold(start, move |(mark, cancellation, first)| async move {
                if first {
                    return Some(("first\n", (mark, cancellation, false)));
                }
                let pause = Duration::from_millis(if ticks { 100 } else { 60_000 });
                tokio::select! {
                    () = cancellation.cancelled() => None,
                    () = sleep(pause) => Some(("tick\n", (mark, cancellation, false))),
                }
            })))
        }
        "slow" => {
            sleep(Duration::from_millis(query.number("ms"))).await;
            plain("slow\n".to_owned())
        }
        // Leaves the body unread.
        "ignore-input" => plain("ignored\n".to_owned()),
        // Which connection of which process this is, and which request on it.
        "connection" => {
            sleep(Duration::from_millis(query.number("ms"))).await;
            let connection = match environ.server().connection {
                0 => "none".to_owned(),
                number => format!("{}/{number}", process::id()),
            };
            plain(format!("connection={connection}\nrequest={}\n", environ.request_number()))
        }
        "memory" => plain(format!("{}\n", memory())),
        _ => {
            start_response.start("404 Not Found", [TEXT])?;
            Ok(format!("the application has no {route}\n").into())
        }
    }
}

/// One more piece, when all before it has had the time to reach the client.
fn later<T>(piece: T) -> impl stream::Stream<Item = T> {
    stream::once(async {
        sleep(Duration::from_millis(300)).await;
        piece
    })
}

/// Reads the request's body to its end.
async fn digest(environ: &mut Environ) -> Result<String, Error> {
    let mut hash = Sha256::new();
    let mut length = 0;
    while let Some(chunk) = environ.input().chunk().await? {
        length += chunk.len();
        hash.update(&chunk);
    }
    Ok(format!("{length} {}\n", pattern::hexadecimal(&hash.finalize())))
}

/// The most memory that this process has had resident, in KiB.
fn memory() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").to_owned()
}

/// Writes `cancelled` to a file when it is dropped.
struct CancelledMark {
    path: PathBuf,
}

impl Drop for CancelledMark {
    fn drop(&mut self) {
        write(&self.path.to_string_lossy(), "cancelled");
    }
}

/// Writes a file as a whole: whoever waits for it never sees half of it.
fn write(path: &str, content: &str) {
    let draft = format!("{path}.draft");
    if let Err(error) = fs::write(&draft, content).and_then(|()| fs::rename(&draft, path)) {
        // The test that waits for the file tells what is missing.
        let _ = writeln!(std::io::stderr(), "{path}: {error}");
    }
}

/// QUERY_STRING's parts, decoded.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(environ: &Environ) -> Query {
        let query = String::from_utf8_lossy(environ.query_string()).into_owned();
        let parts = query.split('&').filter_map(|part| part.split_once('='));
        Query(parts.map(|(name, value)| (decode(name), decode(value))).collect())
    }

    /// A part's value, empty where there is none.
    fn get(&self, name: &str) -> String {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone()).unwrap_or_default()
    }

    /// A part as a number, 0 where there is none.
    fn number(&self, name: &str) -> u64 {
        self.get(name).parse().unwrap_or_default()
    }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
