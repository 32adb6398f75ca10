//! The clients: as cheap as they can be, so that the server is what is measured.
//!
//! Every connection always has a request under way, and one thread looks after all of them.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use gatespan::protocol::fastcgi::{BeginRequest, Header, RecordType, RequestId, Role, name_value, put_record};
use rustix::event::{Timespec, epoll};

/// How much of an upload is in one record: what nginx sends.
const UPLOAD_RECORD: usize = 32 * 1024;

/// Variables as nginx sends them for a browser's request: 25, some 800 bytes.
pub(crate) fn variables(method: &str, content_length: usize) -> Vec<(String, String)> {
    let length = if content_length == 0 { String::new() } else { content_length.to_string() };
    [
        ("QUERY_STRING", "page=2&order=name"),
        ("REQUEST_METHOD", method),
        ("CONTENT_TYPE", ""),
        ("CONTENT_LENGTH", &length),
        ("SCRIPT_NAME", ""),
        ("PATH_INFO", "/articles/list"),
        ("REQUEST_URI", "/articles/list?page=2&order=name"),
        ("DOCUMENT_URI", "/articles/list"),
        ("DOCUMENT_ROOT", "/usr/share/nginx/html"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("REQUEST_SCHEME", "http"),
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("SERVER_SOFTWARE", "nginx/1.22.1"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("REMOTE_PORT", "51234"),
        ("SERVER_ADDR", "127.0.0.1"),
        ("SERVER_PORT", "8080"),
        ("SERVER_NAME", "localhost"),
        ("REDIRECT_STATUS", "200"),
        ("HTTP_HOST", "localhost:8080"),
        ("HTTP_USER_AGENT", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
        ("HTTP_ACCEPT", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("HTTP_ACCEPT_LANGUAGE", "en-US,en;q=0.5"),
        ("HTTP_ACCEPT_ENCODING", "gzip, deflate, br"),
        ("HTTP_CONNECTION", "keep-alive"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// A request as it goes over the wire.
pub(crate) fn request(method: &str, body_len: usize, keep_connection: bool) -> Vec<u8> {
    let id = RequestId(1);
    let mut params = Vec::new();
    for (name, value) in variables(method, body_len) {
        name_value::encode(name.as_bytes(), value.as_bytes(), &mut params).expect("these are short");
    }
    let padded = |content: &[u8]| Header::padded(RecordType::Params, id, content.len() as u16).padding_len;
    let mut wire = Vec::new();
    let begin = BeginRequest { role: Role::Responder, keep_connection };
    put_record(RecordType::BeginRequest, id, &begin.encode(), 0, &mut wire);
    put_record(RecordType::Params, id, &params, padded(&params), &mut wire);
    put_record(RecordType::Params, id, &[], 0, &mut wire);
    for content in vec![b'u'; body_len].chunks(UPLOAD_RECORD) {
        put_record(RecordType::Stdin, id, content, padded(content), &mut wire);
    }
    put_record(RecordType::Stdin, id, &[], 0, &mut wire);
    wire
}

/// Where the records of an answer stand, looked at no further than their headers.
#[derive(Default)]
struct Answer {
    skip: usize,
    ends: bool,
}

impl Answer {
    /// Walks over what is filled and moves the rest to the front. True after END_REQUEST.
    fn take(&mut self, buffer: &mut [u8], filled: &mut usize) -> bool {
        let mut at = 0;
        let over = loop {
            let skipped = usize::min(self.skip, *filled - at);
            at += skipped;
            self.skip -= skipped;
            if self.ends && self.skip == 0 {
                break true;
            }
            let Some(header) = buffer[at..*filled].first_chunk::<8>() else { break false };
            self.skip = 8 + usize::from(u16::from_be_bytes([header[4], header[5]])) + usize::from(header[6]);
            self.ends = header[1] == 3;
        };
        buffer.copy_within(at..*filled, 0);
        *filled -= at;
        over
    }
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "expected END_REQUEST, got the end of the connection")
}

/// Reads up to END_REQUEST. What was read goes through `sink`.
fn read_answer(stream: &mut UnixStream, buffer: &mut [u8], mut sink: impl FnMut(&[u8])) -> io::Result<()> {
    let (mut answer, mut filled) = (Answer::default(), 0);
    loop {
        let read = stream.read(&mut buffer[filled..])?;
        if read == 0 {
            return Err(cut_short());
        }
        sink(&buffer[filled..filled + read]);
        filled += read;
        if answer.take(buffer, &mut filled) {
            return Ok(());
        }
    }
}

/// One answer as it went over the wire.
pub(crate) fn answer(path: &Path, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = connect(path)?;
    stream.write_all(request)?;
    let mut bytes = Vec::new();
    read_answer(&mut stream, &mut vec![0; 64 * 1024], |piece| bytes.extend_from_slice(piece))?;
    Ok(bytes)
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    // A server that does not answer is an error, not the end of all measuring.
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// How long any answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long to go on, and with how many connections.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) connections: usize,
    pub(crate) time: Duration,
    /// No more than about this many requests.
    pub(crate) requests: usize,
    /// How long the clients sleep at most while nothing comes. Zero for clients that never do, on a processor of their own: the server has nobody
    /// to wake, so that a fast one and a slow one do the same for each request. With others, one that is faster than its
    /// clients wakes nobody, and one that is slower wakes them for every answer.
    pub(crate) sleep: Timespec,
}

/// Opens connections and gives each a request as soon as the one before is answered. `open` makes a connection, whose answer `is_answered` looks for
/// in what was read; with `closes` the server closes it then, and a new one takes its place. Gives the number of answers and the time they took.
fn drive<S: Read + Write + AsFd, A>(
    extent: Extent,
    request: &[u8],
    open: impl Fn() -> io::Result<S>,
    new_answer: impl Fn() -> A,
    mut is_answered: impl FnMut(&mut A, &mut [u8], &mut usize) -> io::Result<bool>,
    closes: bool,
) -> io::Result<(usize, Duration)> {
    let waiting = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let begin = |place: usize| {
        let mut stream = open()?;
        stream.write_all(request)?;
        epoll::add(&waiting, &stream, epoll::EventData::new_u64(place as u64), epoll::EventFlags::IN)?;
        io::Result::Ok(stream)
    };
    let mut streams = Vec::new();
    for place in 0..extent.connections {
        streams.push((begin(place)?, new_answer(), 0, false));
    }
    let start = Instant::now();
    let mut last = start;
    let mut buffers = vec![vec![0; 16 * 1024]; extent.connections];
    let mut events = Vec::with_capacity(extent.connections);
    let (mut count, mut open_count) = (0, extent.connections);
    while open_count > 0 {
        events.clear();
        epoll::wait(&waiting, rustix::buffer::spare_capacity(&mut events), Some(&extent.sleep))?;
        let now = Instant::now();
        if events.is_empty() {
            if now - last > TIMEOUT {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server stopped answering"));
            }
            continue;
        }
        last = now;
        let is_over = now - start >= extent.time || count + open_count >= extent.requests;
        for event in &events {
            let place = event.data.u64() as usize;
            let ((stream, answer, filled, ended), buffer) = (&mut streams[place], &mut buffers[place]);
            let read = stream.read(&mut buffer[*filled..])?;
            *filled += read;
            if read == 0 && !(closes && *ended) {
                let got = buffer[..*filled].escape_ascii();
                return Err(io::Error::other(format!("expected the rest of an answer, got the end after \"{got}\"")));
            }
            *ended = *ended || is_answered(answer, buffer, filled)?;
            if !*ended || (closes && read > 0) {
                continue;
            }
            count += 1;
            (*answer, *filled, *ended) = (new_answer(), 0, false);
            if is_over {
                epoll::delete(&waiting, &*stream)?;
                open_count -= 1;
            } else if closes {
                *stream = begin(place)?;
            } else {
                stream.write_all(request)?;
            }
        }
    }
    Ok((count, start.elapsed()))
}

/// Requests on connections that stay.
pub(crate) fn kept(path: &Path, request: &[u8], extent: Extent) -> io::Result<(usize, Duration)> {
    fastcgi(path, request, extent, false)
}

/// Requests on a new connection each, which the server closes.
pub(crate) fn closed(path: &Path, request: &[u8], extent: Extent) -> io::Result<(usize, Duration)> {
    fastcgi(path, request, extent, true)
}

fn fastcgi(path: &Path, request: &[u8], extent: Extent, closes: bool) -> io::Result<(usize, Duration)> {
    let take = |answer: &mut Answer, buffer: &mut [u8], filled: &mut usize| Ok(answer.take(buffer, filled));
    drive(extent, request, || UnixStream::connect(path), Answer::default, take, closes)
}

/// Large answers or uploads, a thread for each connection. Gives the number of requests.
pub(crate) fn large(path: &Path, request: &[u8], extent: Extent) -> io::Result<(usize, Duration)> {
    let start = Instant::now();
    let one = || {
        let mut stream = connect(path)?;
        let mut buffer = vec![0; 256 * 1024];
        let mut count = 0;
        while start.elapsed() < extent.time && count < extent.requests {
            stream.write_all(request)?;
            read_answer(&mut stream, &mut buffer, |_| {})?;
            count += 1;
        }
        io::Result::Ok(count)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..extent.connections).map(|_| scope.spawn(one)).collect();
        let mut count = 0;
        for thread in threads {
            count += thread.join().map_err(|_| io::Error::other("a client panicked"))??;
        }
        Ok((count, start.elapsed()))
    })
}

/// Requests to an HTTP server on kept connections; every answer ends with `end`.
pub(crate) fn http(port: u16, target: &str, end: &[u8], extent: Extent) -> io::Result<(usize, Duration)> {
    let request = format!(
        "GET {target}?page=2&order=name HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; \
         rv:128.0) Gecko/20100101 Firefox/128.0\r\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
         Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nConnection: keep-alive\r\n\r\n"
    );
    let open = || {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        io::Result::Ok(stream)
    };
    let take = |(): &mut (), buffer: &mut [u8], filled: &mut usize| {
        let got = &buffer[..*filled];
        if got.ends_with(end) && !got.starts_with(b"HTTP/1.1 200 ") {
            return Err(io::Error::other(format!("expected 200, got \"{}\"", got.escape_ascii())));
        }
        Ok(got.ends_with(end))
    };
    drive(extent, request.as_bytes(), open, || (), take, false)
}

/// What goes over HTTP for a large answer or an upload: the bodies' lengths, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Lengths {
    /// Of the request's body; a request without one is GET.
    pub(crate) request: usize,
    /// What the answer's Content-Length has to be.
    pub(crate) answer: usize,
}

/// Large answers or uploads over HTTP on kept connections, a thread for each. Gives the number of requests.
pub(crate) fn http_large(port: u16, target: &str, lengths: Lengths, extent: Extent) -> io::Result<(usize, Duration)> {
    let method = if lengths.request == 0 { "GET" } else { "POST" };
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost:8080\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        lengths.request
    );
    let request = [head.as_bytes(), &vec![b'u'; lengths.request]].concat();
    let start = Instant::now();
    let one = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut buffer = vec![0; 256 * 1024];
        let mut count = 0;
        while start.elapsed() < extent.time && count < extent.requests {
            stream.write_all(&request)?;
            read_http_answer(&mut stream, &mut buffer, lengths.answer)?;
            count += 1;
        }
        io::Result::Ok(count)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..extent.connections).map(|_| scope.spawn(one)).collect();
        let mut count = 0;
        for thread in threads {
            count += thread.join().map_err(|_| io::Error::other("a client panicked"))??;
        }
        Ok((count, start.elapsed()))
    })
}

/// Reads one answer, whose body has to be `len` bytes.
fn read_http_answer(stream: &mut TcpStream, buffer: &mut [u8], len: usize) -> io::Result<()> {
    let mut filled = 0;
    let head_len = loop {
        let read = stream.read(&mut buffer[filled..])?;
        filled += read;
        if let Some(at) = buffer[..filled].windows(4).position(|end| end == b"\r\n\r\n") {
            break at + 4;
        }
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "expected the head of an answer, got the end"));
        }
    };
    let head = String::from_utf8_lossy(&buffer[..head_len]).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200 ") || !head.contains(&format!("\r\ncontent-length: {len}\r\n")) {
        return Err(io::Error::other(format!(
            "expected 200 and a Content-Length of {len}, got \"{}\"",
            head.escape_debug()
        )));
    }
    let mut left =
        len.checked_sub(filled - head_len).ok_or_else(|| io::Error::other("expected an answer, got more"))?;
    while left > 0 {
        let read = stream.read(buffer)?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("expected {left} bytes more, got the end"),
            ));
        }
        left = left.checked_sub(read).ok_or_else(|| io::Error::other("expected an answer, got more"))?;
    }
    Ok(())
}
