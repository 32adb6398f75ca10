//! One line per request, written when its body is over: as Apache's common or combined format, or as JSON.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use time::OffsetDateTime;
use time::macros::format_description;

use crate::application::driver::{Response, ResponseBody, call};
use crate::application::{Application, Body, Environ, Error, Frame, Frames, StartResponse};

/// What is logged for a request that nobody waited for to the head: nginx's number for a client that left.
const CLIENT_LEFT: u16 = 499;

/// How a line looks. Times are UTC.
///
/// No request can forge a line or a field: in the text formats every byte but printable ASCII, and `"` and `\`, is `\xHH`; JSON escapes
/// control characters of any kind, and has the replacement character for what is no UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// `host ident user [time] "request line" status bytes`.
    Common,
    /// The same, then `"referer" "user agent"`.
    Combined,
    /// The same, then how long it took in seconds, and the request id: `… 0.013 4f9c2d1e8a7b6c5d`.
    Traced,
    /// An object with `time`, `request_id`, `remote_addr`, `remote_user`, `method`, `target`, `protocol`, `host`, `status`, `bytes`, `duration_ms`,
    /// `referer`, `user_agent` and `cut`: true where the response ended before its end. What is not known is null.
    Json,
}

/// Logs each request of an application once its body is over: sent, cut or given up.
///
/// `sink` is given one whole line with its line feed, and must not block for long; [`to_writer`] makes one of a file or of standard
/// output. `bytes` counts what the application's body gave to the server. An application that fails before its head is logged with
/// the status that its error asks for and without a number of bytes: the page is the server's. One that was given up before
/// is logged as 499.
pub fn access_log<A: Application>(
    application: A,
    format: Format,
    sink: impl Fn(&str) + Send + Sync + 'static,
) -> AccessLog<A> {
    AccessLog { application: Arc::new(application), format, sink: Arc::new(sink) }
}

/// A sink that writes each line with one call, and tells `tracing` of the first line that could not be written.
pub fn to_writer(writer: impl io::Write + Send + 'static) -> impl Fn(&str) + Send + Sync + 'static {
    let writer = Mutex::new((writer, false));
    move |line| {
        let (writer, failed) = &mut *writer.lock().unwrap_or_else(PoisonError::into_inner);
        match writer.write_all(line.as_bytes()).and_then(|()| writer.flush()) {
            Ok(()) => *failed = false,
            Err(error) if !std::mem::replace(failed, true) => {
                tracing::error!(%error, "the access log could not be written");
            }
            Err(_) => {}
        }
    }
}

/// See [`access_log`].
pub struct AccessLog<A> {
    application: Arc<A>,
    format: Format,
    sink: Sink,
}

type Sink = Arc<dyn Fn(&str) + Send + Sync>;

impl<A: Application> Application for AccessLog<A> {
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let mut entry = Entry {
            format: self.format,
            sink: self.sink.clone(),
            environ: environ.without_input(),
            time: OffsetDateTime::now_utc(),
            start: Instant::now(),
            status: CLIENT_LEFT,
            bytes: None,
            length: None,
            cut: true,
        };
        let Response { head, body } = match call(self.application.clone(), environ).await {
            Ok(response) => response,
            Err(error) => {
                entry.status = error.status();
                entry.cut = false;
                return Err(error);
            }
        };
        entry.status = head.status.code();
        entry.bytes = Some(0);
        entry.length = head.content_length()?;
        entry.cut = !body.is_over();
        start_response.start(head.status, head.headers)?;
        Ok(Body::frames(Logged { body, entry: Some(entry) }))
    }
}

impl<A> fmt::Debug for AccessLog<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLog").field("format", &self.format).finish_non_exhaustive()
    }
}

/// A body that is counted.
struct Logged {
    body: ResponseBody,
    /// Writes its line when it is dropped, so that no way out is without one.
    entry: Option<Entry>,
}

impl Frames for Logged {
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let frame = ready!(self.body.poll_frame(cx));
        if let Some(entry) = &mut self.entry {
            let len = match &frame {
                Some(Ok(Frame::Data(data))) => data.len() as u64,
                Some(Ok(Frame::File(range))) => range.len,
                _ => 0,
            };
            let bytes = entry.bytes.unwrap_or_default() + len;
            entry.bytes = Some(bytes);
            // A server that has sent what Content-Length announced need not ask for the end.
            entry.cut = frame.is_some() && entry.length != Some(bytes) || matches!(frame, Some(Err(_)));
        }
        Poll::Ready(frame)
    }

    fn exact_len(&self) -> Option<u64> {
        self.body.exact_len()
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.body.poll_close(cx));
        self.entry = None;
        Poll::Ready(())
    }
}

/// What is known of a request that is not over.
struct Entry {
    format: Format,
    sink: Sink,
    environ: Environ,
    time: OffsetDateTime,
    start: Instant,
    status: u16,
    bytes: Option<u64>,
    length: Option<u64>,
    cut: bool,
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Its errors are those of what is formatted, and neither numbers nor strings have any.
        let mut line = String::with_capacity(256);
        let _ = match self.format {
            Format::Common => self.common(&mut line),
            Format::Combined => self.combined(&mut line),
            Format::Traced => self.traced(&mut line),
            Format::Json => self.json(&mut line),
        };
        line.push('\n');
        (self.sink)(&line);
    }
}

impl Entry {
    fn common(&self, line: &mut String) -> fmt::Result {
        let time =
            self.time.format(format_description!("[day]/[month repr:short]/[year]:[hour]:[minute]:[second] +0000"));
        write!(
            line,
            "{} - {} [{}] \"{} {} {}\" {} ",
            Word(self.environ.get("REMOTE_ADDR")),
            Word(self.environ.get("REMOTE_USER")),
            time.unwrap_or_default(),
            Quoted(self.environ.method()),
            Quoted(&self.environ.target()),
            Quoted(self.environ.get("SERVER_PROTOCOL").unwrap_or_default()),
            self.status,
        )?;
        match self.bytes {
            Some(bytes @ 1..) => write!(line, "{bytes}"),
            _ => line.write_char('-'),
        }
    }

    fn combined(&self, line: &mut String) -> fmt::Result {
        self.common(line)?;
        let header = |name: &str| self.environ.get(name).filter(|value| !value.is_empty()).unwrap_or(b"-");
        write!(line, " \"{}\" \"{}\"", Quoted(header("HTTP_REFERER")), Quoted(header("HTTP_USER_AGENT")))
    }

    fn traced(&self, line: &mut String) -> fmt::Result {
        self.combined(line)?;
        let id = Word(Some(self.environ.request_id().as_bytes()));
        write!(line, " {:.3} {id}", self.start.elapsed().as_secs_f64())
    }

    fn json(&self, line: &mut String) -> fmt::Result {
        let time = self
            .time
            .format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"));
        let variable = |name: &str| self.environ.get(name).map(Cow::Borrowed);
        let texts = [
            ("time", time.ok().map(|time| time.into_bytes().into())),
            ("request_id", Some(self.environ.request_id().as_bytes().into())),
            ("remote_addr", variable("REMOTE_ADDR")),
            ("remote_user", variable("REMOTE_USER")),
            ("method", variable("REQUEST_METHOD")),
            ("target", Some(self.environ.target())),
            ("protocol", variable("SERVER_PROTOCOL")),
            ("host", variable("HTTP_HOST")),
            ("referer", variable("HTTP_REFERER")),
            ("user_agent", variable("HTTP_USER_AGENT")),
        ];
        line.push('{');
        for (name, text) in texts {
            write!(line, "\"{name}\":{},", Json(text.as_deref().filter(|text| !text.is_empty())))?;
        }
        let milliseconds = self.start.elapsed().as_secs_f64() * 1e3;
        write!(line, "\"status\":{},\"bytes\":", self.status)?;
        match self.bytes {
            Some(bytes) => write!(line, "{bytes}")?,
            None => line.push_str("null"),
        }
        write!(line, ",\"duration_ms\":{milliseconds:.3},\"cut\":{}}}", self.cut)
    }
}

/// Text between quotation marks.
struct Quoted<'a>(&'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            match byte {
                b'"' | b'\\' => write!(f, "\\x{byte:02x}")?,
                b' '..=b'~' => f.write_char(char::from(*byte))?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        Ok(())
    }
}

/// Text between blanks, `-` where there is none.
struct Word<'a>(Option<&'a [u8]>);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(text) = self.0.filter(|text| !text.is_empty()) else { return f.write_char('-') };
        for part in text.chunk_by(|before, after| (*before == b' ') == (*after == b' ')) {
            match part.first() {
                Some(b' ') => part.iter().try_for_each(|_| f.write_str("\\x20"))?,
                _ => Quoted(part).fmt(f)?,
            }
        }
        Ok(())
    }
}

/// Text as JSON, `null` where there is none.
struct Json<'a>(Option<&'a [u8]>);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(text) = self.0 else { return f.write_str("null") };
        let json = serde_json::to_string(&String::from_utf8_lossy(text)).map_err(|_| fmt::Error)?;
        for character in json.chars() {
            match character {
                // What JSON lets pass, and terminals and line-based readers may not.
                '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' => write!(f, "\\u{:04x}", u32::from(character))?,
                _ => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::forms::{counted_request, forms, request, text_of};
    use super::*;

    type Lines = Arc<Mutex<Vec<String>>>;

    fn logged<A: Application>(application: A, format: Format) -> (AccessLog<A>, Lines) {
        let lines = Lines::default();
        let list = lines.clone();
        (access_log(application, format, move |line| list.lock().unwrap().push(line.to_owned())), lines)
    }

    fn object(lines: &Lines) -> serde_json::Value {
        let lines = std::mem::take(&mut *lines.lock().unwrap());
        assert_eq!(lines.len(), 1, "{lines:?}");
        serde_json::from_str(&lines[0]).unwrap()
    }

    /// The line without its time, which stands in brackets.
    fn untimed(line: &str) -> String {
        let (before, after) = line.split_once('[').unwrap();
        let (time, after) = after.split_once(']').unwrap();
        assert_eq!(time.len(), "10/Oct/2000:13:55:36 +0000".len());
        format!("{before}[]{after}")
    }

    #[tokio::test]
    async fn each_request_is_one_line_whatever_the_form() {
        for (form, app) in forms() {
            let (app, lines) = logged(app, Format::Common);
            let (environ, closed) = counted_request("/a b");
            assert_eq!(text_of(app, environ).await, (200, "|/a b".into()));
            assert_eq!(closed.count(), 1, "{form}");
            let lines = lines.lock().unwrap();
            assert_eq!(lines.len(), 1, "{form}");
            assert_eq!(untimed(&lines[0]), "192.0.2.1 - - [] \"GET /a%20b HTTP/1.1\" 200 5\n", "{form}");
        }
    }

    #[tokio::test]
    async fn a_traced_line_ends_with_the_time_it_took_and_the_request_id() {
        let (app, lines) = logged(forms().remove(0).1, Format::Traced);
        let mut environ = request("/");
        environ.set("HTTP_X_REQUEST_ID", "abc-1").unwrap();
        text_of(app, environ).await;
        let line = untimed(&lines.lock().unwrap()[0]);
        let rest =
            line.strip_prefix("192.0.2.1 - - [] \"GET / HTTP/1.1\" 200 2 \"-\" \"-\" ").expect("a combined line");
        let (seconds, id) = rest.split_once(' ').expect("two words");
        assert!(seconds.parse::<f64>().is_ok_and(|seconds| seconds < 60.0), "{seconds}");
        assert_eq!(id, "abc-1\n");
    }

    #[tokio::test]
    async fn the_line_is_written_when_the_body_is_closed() {
        for (form, app) in forms() {
            let (app, lines) = logged(app, Format::Json);
            let mut response = call(app, request("/")).await.unwrap();
            assert!(lines.lock().unwrap().is_empty(), "{form}");
            response.body.read_to_end(99).await.unwrap();
            let line = object(&lines);
            assert_eq!((&line["bytes"], &line["cut"]), (&2.into(), &false.into()), "{form}");
        }
    }

    #[tokio::test]
    async fn no_request_can_forge_a_line_or_a_field() {
        let mut environ = request("/");
        for (name, value) in [
            ("REQUEST_URI", "/\" 200 1\n127.0.0.1 - - \\ \u{e9}"),
            ("REMOTE_USER", "a [b] c"),
            ("HTTP_USER_AGENT", "\u{1b}[2J\u{9b}31m\u{7f}\u{2028}\",\"x\":\"\r\n"),
        ] {
            environ.set(name, value).unwrap();
        }
        let copy = environ.without_input();
        let (app, lines) = logged(forms().remove(0).1, Format::Combined);
        text_of(app, environ).await;
        let line = lines.lock().unwrap().remove(0);
        assert!(line.starts_with("192.0.2.1 - a\\x20[b]\\x20c ["), "{line}");
        assert!(
            line.ends_with(
                "\"GET /\\x22 200 1\\x0a127.0.0.1 - - \\x5c \\xc3\\xa9 HTTP/1.1\" 200 2 \"-\" \
                 \"\\x1b[2J\\xc2\\x9b31m\\x7f\\xe2\\x80\\xa8\\x22,\\x22x\\x22:\\x22\\x0d\\x0a\"\n"
            ),
            "{line}"
        );
        let agent = copy.text("HTTP_USER_AGENT").unwrap().unwrap().to_owned();
        let (app, lines) = logged(forms().remove(0).1, Format::Json);
        text_of(app, copy).await;
        let line = lines.lock().unwrap()[0].clone();
        assert!(line.trim_end().chars().all(|character| !character.is_control() && character != '\u{2028}'), "{line}");
        assert_eq!(object(&lines)["user_agent"], agent);
    }

    #[tokio::test]
    async fn a_cut_response_is_marked() {
        async fn fails(_: Environ, start_response: StartResponse) -> Result<Body, Error> {
            start_response.start("200 OK", ())?;
            Ok(Body::iter([Ok("data"), Err(Error::new("failed"))]))
        }
        let (app, lines) = logged(fails, Format::Json);
        call(app, request("/")).await.unwrap().body.read_to_end(99).await.unwrap_err();
        let line = object(&lines);
        assert_eq!((&line["status"], &line["bytes"], &line["cut"]), (&200.into(), &4.into(), &true.into()));

        for (form, app) in forms() {
            let (app, lines) = logged(app, Format::Json);
            let mut response = call(app, request("/")).await.unwrap();
            response.body.next().await.unwrap().unwrap();
            drop(response);
            assert_eq!(object(&lines)["cut"], true, "{form}");
        }
    }

    #[tokio::test]
    async fn a_server_that_stops_at_content_length_has_cut_nothing() {
        async fn app(_: Environ, start_response: StartResponse) -> Result<Body, Error> {
            start_response.start("200 OK", [("Content-Length", "4")])?;
            Ok(Body::iter(["da", "ta"]))
        }
        let (app, lines) = logged(app, Format::Json);
        let mut response = call(app, request("/")).await.unwrap();
        for _ in 0..3 {
            // Two pieces with a flush between them.
            response.body.next().await.unwrap().unwrap();
        }
        drop(response);
        assert_eq!(object(&lines)["cut"], false);
    }

    #[tokio::test]
    async fn errors_and_clients_that_leave_before_the_head_are_logged_too() {
        async fn app(environ: Environ, _: StartResponse) -> Result<Body, Error> {
            match environ.path_info() {
                b"/wait" => std::future::pending().await,
                _ => Err(Error::new("no upstream").with_status(502)),
            }
        }
        let (app, lines) = logged(app, Format::Json);
        let app = Arc::new(app);
        call(app.clone(), request("/")).await.unwrap_err();
        let line = object(&lines);
        assert_eq!((&line["status"], &line["bytes"], &line["cut"]), (&502.into(), &().into(), &false.into()));
        {
            let mut leaves = Box::pin(call(app, request("/wait")));
            assert!(futures_util::poll!(&mut leaves).is_pending());
        }
        let line = object(&lines);
        assert_eq!((&line["status"], &line["cut"]), (&499.into(), &true.into()));
    }

    #[tokio::test]
    async fn a_response_without_a_body_is_whole() {
        let mut environ = request("/");
        environ.set("REQUEST_METHOD", "HEAD").unwrap();
        let (app, lines) = logged(forms().remove(0).1, Format::Json);
        text_of(app, environ).await;
        let line = object(&lines);
        assert_eq!((&line["bytes"], &line["cut"], &line["method"]), (&0.into(), &false.into(), &"HEAD".into()));
    }

    #[test]
    fn a_writer_that_fails_is_no_one_s_problem() {
        struct Full;
        impl io::Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::other("full"))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        to_writer(Full)("line\n");
    }
}
