//! An HTTP/1.1 client for tests: one connection, nothing followed, nothing repeated, nothing mended. It keeps the reason
//! phrase, the order of repeated headers, when each piece of a body arrived, and whether the body was whole.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Body as _, Bytes, Frame, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::ext::ReasonPhrase;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderMap};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::pattern;

/// How long any one step of an exchange may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many bytes of an upload go up in a second at the least, on a machine that has other things to do.
const BYTES_A_SECOND: u64 = 8_000_000;
/// How much of an answer's body is kept; of all of it, the length and the digest are.
const KEPT: usize = 1024 * 1024;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A connection to a web server.
pub struct Client {
    address: SocketAddr,
    sender: SendRequest<Body>,
    connection: JoinHandle<()>,
}

/// What a request carries.
#[derive(Clone, Debug)]
pub enum Upload {
    Nothing,
    /// A text with its length.
    Text(&'static str),
    /// So many bytes of the pattern, with their length.
    Sized(u64),
    /// So many bytes of the pattern, in chunks.
    Chunked(u64),
}

/// An answer whose body is yet to be read.
pub struct Head {
    pub status: u16,
    pub reason: String,
    pub headers: HeaderMap,
    incoming: Incoming,
}

/// A whole answer, or as much of it as came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub reason: String,
    pub headers: HeaderMap,
    /// The first mebibyte.
    pub body: Vec<u8>,
    pub length: u64,
    /// In hexadecimal.
    pub sha256: String,
    /// When each piece of the body came, and its length.
    pub arrivals: Vec<(Instant, usize)>,
    /// Why the body is not whole.
    pub cut: Option<String>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Result<Client, String> {
        let stream = within("connecting", TcpStream::connect(address)).await?.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let handshake = http1::Builder::new().title_case_headers(true).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(async move {
            // What goes wrong shows in the exchange under way.
            let _ = connection.await;
        });
        Ok(Client { address, sender, connection })
    }

    /// Sends a request and waits for the head of its answer.
    pub async fn head(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        upload: Upload,
    ) -> Result<Head, String> {
        let mut request = Request::builder().method(method).uri(target).header(HOST, self.address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Upload::Sized(length) = upload {
            request = request.header(CONTENT_LENGTH, length);
        }
        let patience = match upload {
            Upload::Sized(length) | Upload::Chunked(length) => PATIENCE + Duration::from_secs(length / BYTES_A_SECOND),
            Upload::Nothing | Upload::Text(_) => PATIENCE,
        };
        let body = match upload {
            Upload::Nothing => Empty::new().boxed_unsync(),
            Upload::Text(text) => Full::from(text).boxed_unsync(),
            Upload::Sized(length) | Upload::Chunked(length) => {
                let frames = pattern::blocks(length).map(|block| Ok(Frame::data(Bytes::from(block))));
                StreamBody::new(stream::iter(frames)).boxed_unsync()
            }
        };
        let request = request.body(body).map_err(|error| error.to_string())?;
        within("a free connection", self.sender.ready()).await?.map_err(|error| error.to_string())?;
        let response = timeout(patience, self.sender.send_request(request)).await;
        let response = response.map_err(|_| format!("{HANGS}an answer"))?;
        Ok(Head::from(response.map_err(|error| describe(&error))?))
    }

    /// Sends a request and reads all of its answer.
    pub async fn send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        upload: Upload,
    ) -> Result<Answer, String> {
        self.head(method, target, headers, upload).await?.read().await
    }

    /// GET without anything else.
    pub async fn get(&mut self, target: &str) -> Result<Answer, String> {
        self.send("GET", target, &[], Upload::Nothing).await
    }

    /// Leaves without waiting for anything.
    pub async fn leave(self) {
        self.connection.abort();
        let _ = self.connection.await;
    }
}

/// A request of its own connection.
pub async fn get(address: SocketAddr, target: &str) -> Result<Answer, String> {
    Client::connect(address).await?.get(target).await
}

impl From<Response<Incoming>> for Head {
    fn from(response: Response<Incoming>) -> Head {
        let (parts, incoming) = response.into_parts();
        let reason = match parts.extensions.get::<ReasonPhrase>() {
            Some(reason) => String::from_utf8_lossy(reason.as_bytes()).into_owned(),
            // hyper keeps only what is not the status's usual reason.
            None => parts.status.canonical_reason().unwrap_or_default().to_owned(),
        };
        Head { status: parts.status.as_u16(), reason, headers: parts.headers, incoming }
    }
}

impl Head {
    /// The next piece of the body: nothing at its end, an error where it was cut.
    pub async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            match within("more of an answer", self.incoming.frame()).await? {
                None => return Ok(None),
                Some(Err(error)) => return Err(describe(&error)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Ok(Some(data)),
                    Err(_trailers) => {}
                },
            }
        }
    }

    /// Reads the body to its end. An answer that stalls is an error; one that is cut is an answer that says so.
    pub async fn read(mut self) -> Result<Answer, String> {
        let mut hash = Sha256::new();
        let (mut body, mut length, mut arrivals) = (Vec::new(), 0, Vec::new());
        // hyper ends a body of a HEAD's or a 304's announced length at once; is_end_stream says the same.
        let cut = loop {
            if self.incoming.is_end_stream() {
                break None;
            }
            match self.next().await {
                Ok(None) => break None,
                Ok(Some(data)) => {
                    arrivals.push((Instant::now(), data.len()));
                    hash.update(&data);
                    length += data.len() as u64;
                    body.extend_from_slice(&data[..data.len().min(KEPT - body.len())]);
                }
                Err(error) if is_hanging(&error) => return Err(error),
                Err(error) => break Some(error),
            }
        };
        Ok(Answer {
            status: self.status,
            reason: self.reason,
            headers: self.headers,
            body,
            length,
            sha256: pattern::hexadecimal(&hash.finalize()),
            arrivals,
            cut,
        })
    }
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// All values of a header, in order.
    pub fn values(&self, name: &str) -> Vec<String> {
        self.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    }

    /// The value of a line `name=value` of the body.
    pub fn line(&self, name: &str) -> Option<String> {
        self.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
    }
}

/// How an error begins that says that nothing came for too long.
const HANGS: &str = "waited too long for ";

/// Whether an error says that nothing came for too long.
pub fn is_hanging(error: &str) -> bool {
    error.starts_with(HANGS)
}

async fn within<F: Future>(what: &str, step: F) -> Result<F::Output, String> {
    timeout(PATIENCE, step).await.map_err(|_| format!("{HANGS}{what}"))
}

/// An error with its causes: hyper's own message leaves them out.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
