//! A web server's side of one FastCGI connection, for tests: as patient or impatient as the test wants it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use gatespan::protocol::fastcgi::web_server_end::{Event, Settings};
use gatespan::protocol::fastcgi::{ProtocolStatus, RequestId, Role, WebServerEnd};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::{poll_read_buf, poll_write_buf};

/// A connection with its state.
pub struct Client<S> {
    pub stream: S,
    pub end: WebServerEnd,
    answers: HashMap<RequestId, Answer>,
    pub values: Option<Vec<(String, String)>>,
    pub unknown_types: Vec<u8>,
    is_over: bool,
}

/// What came for one request.
#[derive(Debug, Default)]
pub struct Answer {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The pieces of `stdout`, record by record as they were read.
    pub pieces: Vec<Bytes>,
    /// END_REQUEST, if there was one.
    pub end: Option<(u32, ProtocolStatus)>,
    pub ends: usize,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    pub fn body(&self) -> &[u8] {
        let at = self.stdout.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
        &self.stdout[at + 4..]
    }

    pub fn is_complete(&self) -> bool {
        self.end == Some((0, ProtocolStatus::RequestComplete))
    }
}

/// The time within which whatever a test waits for has to happen.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits for something that must not take long.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it takes too long")
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn new(stream: S) -> Self {
        let settings = Settings { max_requests: 2000, max_params_len: 1 << 24, ..Settings::default() };
        Self {
            stream,
            end: WebServerEnd::new(settings),
            answers: HashMap::new(),
            values: None,
            unknown_types: Vec::new(),
            is_over: false,
        }
    }

    /// Begins a request of which more will come.
    pub fn begin(&mut self, role: Role, keep: bool, params: &[(&str, &str)]) -> RequestId {
        let params = params.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        self.end.begin(role, keep, params).expect("room for a request")
    }

    /// A whole GET, queued.
    pub fn get(&mut self, path: &str, keep: bool) -> RequestId {
        let id = self.begin(Role::Responder, keep, &[("REQUEST_METHOD", "GET"), ("PATH_INFO", path)]);
        self.end.end_stdin(id);
        id
    }

    /// The head of a POST, queued.
    pub fn post(&mut self, path: &str, len: usize, keep: bool) -> RequestId {
        let len = len.to_string();
        let params = [("REQUEST_METHOD", "POST"), ("PATH_INFO", path), ("CONTENT_LENGTH", &*len)];
        self.begin(Role::Responder, keep, &params)
    }

    /// Writes what is queued, and nothing else.
    pub async fn flush(&mut self) {
        soon(poll_fn(|cx| {
            while !self.end.output().is_empty() {
                match poll_write_buf(Pin::new(&mut self.stream), cx, self.end.output()) {
                    Poll::Ready(result) => result.map(drop).expect("the connection takes it"),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(())
        }))
        .await;
    }

    /// The next event, while what is queued is written; `None` at the end of the connection.
    pub async fn event(&mut self) -> io::Result<Option<Event>> {
        poll_fn(|cx| {
            loop {
                while !self.end.output().is_empty() {
                    match poll_write_buf(Pin::new(&mut self.stream), cx, self.end.output()) {
                        Poll::Ready(Ok(_)) => {}
                        // What there is to read is still to be read.
                        Poll::Ready(Err(_)) => {
                            let waiting = self.end.output().len();
                            bytes::Buf::advance(self.end.output(), waiting);
                        }
                        Poll::Pending => break,
                    }
                }
                match self.end.next_event() {
                    Ok(Some(event)) => return Poll::Ready(Ok(Some(event))),
                    Ok(None) if self.is_over => return Poll::Ready(Ok(None)),
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Err(io::Error::other(error))),
                }
                self.end.receive_buffer().reserve(16 * 1024);
                match poll_read_buf(Pin::new(&mut self.stream), cx, self.end.receive_buffer()) {
                    Poll::Ready(Ok(0)) => self.is_over = true,
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// Takes note of one event. False at the end of the connection.
    pub async fn step(&mut self) -> io::Result<bool> {
        let Some(event) = self.event().await? else { return Ok(false) };
        match event {
            Event::Stdout { id, data } => {
                let answer = self.answers.entry(id).or_default();
                answer.stdout.extend_from_slice(&data);
                answer.pieces.push(data);
            }
            Event::Stderr { id, data } => self.answers.entry(id).or_default().stderr.extend_from_slice(&data),
            Event::EndRequest { id, application_status, protocol_status } => {
                let answer = self.answers.entry(id).or_default();
                answer.end = Some((application_status, protocol_status));
                answer.ends += 1;
            }
            Event::Values(pairs) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                self.values = Some(pairs.iter().map(|(name, value)| (text(name), text(value))).collect());
            }
            Event::UnknownType(record_type) => self.unknown_types.push(record_type),
            Event::StdoutEnd { .. } | Event::StderrEnd { .. } => {}
            Event::Ignored { id, record_type, .. } => panic!("an unasked record: {record_type:?} for {id:?}"),
        }
        Ok(true)
    }

    /// What came for a request, to its end or the connection's.
    pub async fn answer(&mut self, id: RequestId) -> Answer {
        soon(async {
            while self.answers.get(&id).is_none_or(|answer| answer.end.is_none())
                && self.step().await.expect("no reset")
            {}
            self.answers.remove(&id).unwrap_or_default()
        })
        .await
    }

    /// What has come for a request so far.
    pub fn so_far(&mut self, id: RequestId) -> &mut Answer {
        self.answers.entry(id).or_default()
    }

    /// Waits until that much of the answer came.
    pub async fn wait_for(&mut self, id: RequestId, text: &str) {
        soon(async {
            while !self.so_far(id).text().contains(text) && !self.so_far(id).errors().contains(text) {
                assert!(self.step().await.expect("no reset"), "the connection ended before {text:?}");
            }
        })
        .await;
    }

    /// Whether the application closes the connection, and sends nothing before that.
    pub async fn is_closed(&mut self) -> bool {
        matches!(soon(self.event()).await, Ok(None))
    }
}
