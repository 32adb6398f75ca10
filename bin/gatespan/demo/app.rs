//! The demo's application, seen from itself: it answers requests the same way, whichever gateway they came through.

use std::fmt::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gatespan::application::{Frame, Frames};
use gatespan::{Application, Body, Environ, Error, StartResponse};
use serde_json::{Map, json};
use sha2::{Digest, Sha256};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::multipart::UploadedFile;

/// One small application: a greeting, its environ, a form, an upload and an event stream.
#[derive(Debug, Clone)]
pub(crate) struct DemoApplication {
    stop: CancellationToken,
}

/// How often the event stream ticks.
const TICK: Duration = Duration::from_millis(500);

/// The longest form that is taken, in bytes.
pub(crate) const MAX_FORM_LEN: usize = 64 * 1024;

const TEXT: &str = "text/plain; charset=utf-8";

impl DemoApplication {
    /// The application; its event streams end when `stop` is cancelled, so that the server can.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { stop }
    }
}

impl Application for DemoApplication {
    async fn call(&self, mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let allowed = match environ.path_info() {
            b"/form" => "POST",
            b"/upload" => "POST, PUT",
            _ => "GET, HEAD",
        };
        let method = environ.text("REQUEST_METHOD")?.unwrap_or_default();
        if !allowed.split(", ").any(|allowed| allowed == method) {
            start_response.start("405 Method Not Allowed", [("Content-Type", TEXT), ("Allow", allowed)])?;
            return Ok(Body::from(format!("Only {allowed} is answered here.\n")));
        }
        match environ.path_info() {
            b"" | b"/" => hello(&environ, &start_response),
            b"/environ" => tell_environ(&environ, &start_response),
            b"/form" => form(&mut environ, &start_response).await,
            b"/upload" => upload(&mut environ, &start_response).await,
            b"/events" => self.events(&start_response),
            _ => {
                start_response.start("404 Not Found", [("Content-Type", TEXT)])?;
                Ok("There are /, /environ, /form, /upload and /events.\n".into())
            }
        }
    }
}

impl DemoApplication {
    /// An event stream that ticks until its client leaves or the server stops.
    fn events(&self, start_response: &StartResponse) -> Result<Body, Error> {
        start_response
            .start("200 OK", [("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-store")])?;
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let stop = Box::pin(self.stop.clone().cancelled_owned());
        Ok(Body::frames(Ticks { interval, stop, count: 0 }))
    }
}

fn hello(environ: &Environ, start_response: &StartResponse) -> Result<Body, Error> {
    let headers =
        [("Content-Type", TEXT), ("Set-Cookie", "first=1; SameSite=Lax"), ("Set-Cookie", "second=2; SameSite=Lax")];
    start_response.start("200 Fine, thank you", headers)?;
    let path = [environ.script_name(), environ.path_info()].concat();
    Ok(format!("Hello from one small application.\nYou asked for {}.\n", path.escape_ascii()).into())
}

/// Everything that the application was told: the request's variables, and what PEP 3333's interface adds.
fn tell_environ(environ: &Environ, start_response: &StartResponse) -> Result<Body, Error> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let variables: Map<_, _> =
        environ.variables().iter().map(|(name, value)| (text(name), text(value).into())).collect();
    let (major, minor) = environ.version();
    let answer = json!({
        "variables": variables,
        "interface": {
            "gateway": environ.server().gateway,
            "process": std::process::id().to_string(),
            "wsgi.version": format!("{major}.{minor}"),
            "wsgi.url_scheme": environ.url_scheme(),
            "wsgi.multithread": environ.multithread().to_string(),
            "wsgi.multiprocess": environ.multiprocess().to_string(),
            "wsgi.run_once": environ.run_once().to_string(),
        },
    });
    start_response.start("200 OK", [("Content-Type", "application/json")])?;
    Ok(format!("{answer:#}\n").into())
}

/// What arrived of a form, as it came and taken apart.
async fn form(environ: &mut Environ, start_response: &StartResponse) -> Result<Body, Error> {
    let body = environ.input().read_to_end(MAX_FORM_LEN).await?;
    let said = |name| environ.text(name).ok().flatten().unwrap_or("(not set)");
    let mut answer = format!(
        "CONTENT_TYPE   {}\nCONTENT_LENGTH {}\nbytes read     {}\n",
        said("CONTENT_TYPE"),
        said("CONTENT_LENGTH"),
        body.len()
    );
    for field in body.split(|byte| *byte == b'&').filter(|field| !field.is_empty()) {
        let (name, value) = match field.iter().position(|byte| *byte == b'=') {
            Some(at) => (&field[..at], &field[at + 1..]),
            None => (field, &b""[..]),
        };
        let _ = write!(answer, "\n{}: {}", decode(name), decode(value));
    }
    answer.push('\n');
    start_response.start("200 OK", [("Content-Type", TEXT)])?;
    Ok(answer.into())
}

/// One part of `application/x-www-form-urlencoded` (URL standard, section 5.1).
fn decode(encoded: &[u8]) -> String {
    let spaced: Vec<u8> = encoded.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_encoding::percent_decode(&spaced).decode_utf8_lossy().into_owned()
}

/// The length and the SHA-256 of a file that streams through: of a form's file, or of the whole body where it is no form.
async fn upload(environ: &mut Environ, start_response: &StartResponse) -> Result<Body, Error> {
    let mut file = UploadedFile::new(environ.get("CONTENT_TYPE").unwrap_or_default());
    let (mut digest, mut length, mut pieces) = (Sha256::new(), 0u64, 0u64);
    while let Some(piece) = environ.input().chunk().await? {
        pieces += 1;
        let mut take = |bytes: &[u8]| {
            digest.update(bytes);
            length += bytes.len() as u64;
        };
        file.push(&piece, &mut take)?;
    }
    let name = file.finish()?;
    let mut checksum = String::new();
    for byte in digest.finalize() {
        let _ = write!(checksum, "{byte:02x}");
    }
    let mut answer = String::new();
    if let Some(name) = name {
        let _ = writeln!(answer, "name     {name}");
    }
    let _ = writeln!(answer, "bytes    {length}\nSHA-256  {checksum}\narrived  in {pieces} pieces");
    start_response.start("200 OK", [("Content-Type", TEXT)])?;
    Ok(answer.into())
}

/// The ticks of an event stream: a number, and when it was sent, in milliseconds since 1970.
struct Ticks {
    interval: Interval,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    count: u64,
}

impl Frames for Ticks {
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        if self.stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        ready!(self.interval.poll_tick(cx));
        self.count += 1;
        let sent = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let data = json!({ "tick": self.count, "process": std::process::id(), "sent": sent as u64 });
        Poll::Ready(Some(Ok(Frame::Data(format!("id: {}\ndata: {data}\n\n", self.count).into()))))
    }
}

#[cfg(test)]
mod tests {
    use gatespan::application::driver;
    use gatespan::application::{Input, Variables};

    use super::*;

    async fn answer(method: &str, path: &str, body: &'static [u8]) -> (u16, String) {
        let variables = [("REQUEST_METHOD", method), ("PATH_INFO", path), ("CONTENT_TYPE", "text/plain")];
        let environ = Environ::new(Variables::from_iter(variables)).with_input(Input::from_bytes(body));
        let mut response = driver::answer(DemoApplication::new(CancellationToken::new()), environ).await;
        let body = response.body.read_to_end(1 << 20).await.unwrap();
        (response.head.status.code(), String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_form_is_decoded() {
        let (status, text) = answer("POST", "/form", b"a=1+2&b=%C3%A9%26&c").await;
        assert_eq!(status, 200);
        assert!(text.ends_with("bytes read     19\n\na: 1 2\nb: \u{e9}&\nc: \n"), "{text}");
    }

    #[tokio::test]
    async fn an_upload_is_counted_and_digested() {
        let (_, text) = answer("PUT", "/upload", b"abc").await;
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(text, format!("bytes    3\nSHA-256  {sha256}\narrived  in 1 pieces\n"));
    }

    #[tokio::test]
    async fn other_methods_and_paths_are_refused() {
        assert_eq!(answer("GET", "/upload", b"").await.0, 405);
        assert_eq!(answer("POST", "/", b"").await.0, 405);
        assert_eq!(answer("GET", "/other", b"").await.0, 404);
    }
}
