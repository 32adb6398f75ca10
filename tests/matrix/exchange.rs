//! One request and its answer from the client's side of each way in: HTTP on a socket, FastCGI as a web server speaks it, and CGI as a web server
//! starts it. All of it is written and read by hand, with nothing of ours between, piece by piece where a test wants to see what comes when.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};

use crate::support::pattern::{blocks, hexadecimal};

/// A request, before any protocol.
#[derive(Clone, Copy)]
pub struct Asked {
    pub method: &'static str,
    /// As it stands in a URI.
    pub path: &'static str,
    pub query: &'static str,
    /// As HTTP has them; the other ways in get the variables that a web server makes of them.
    pub headers: &'static [(&'static str, &'static str)],
    /// How many bytes of the pattern the body has, and whether that is said before.
    pub body: Option<(u64, Announced)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    Yes,
    No,
}

pub const GET: Asked = Asked { method: "GET", path: "/app/environ", query: "", headers: &[], body: None };
pub const POST: Asked = Asked { method: "POST", ..GET };

/// The field that makes a variable which nobody must be told (httpoxy).
const NEVER_TOLD: &str = "Proxy";

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.target())?;
        match self.body {
            Some((length, Announced::Yes)) => write!(f, " with {length} bytes"),
            Some((length, Announced::No)) => write!(f, " with {length} bytes, unannounced"),
            None => Ok(()),
        }
    }
}

impl Asked {
    fn target(&self) -> String {
        match self.query {
            "" => self.path.to_owned(),
            query => format!("{}?{query}", self.path),
        }
    }

    /// What an application is to be told of it: what a good web server says to FastCGI and CGI programs. What differs from that in one of the cells
    /// is on the list of differences.
    pub fn variables(&self) -> Vec<(String, String)> {
        let path = percent_decode_str(self.path).decode_utf8_lossy();
        let mut variables: Vec<(String, String)> = [
            ("GATEWAY_INTERFACE", "CGI/1.1"),
            ("REQUEST_METHOD", self.method),
            ("SCRIPT_NAME", ""),
            ("PATH_INFO", &*path),
            ("QUERY_STRING", self.query),
            ("REQUEST_URI", &self.target()),
            ("REQUEST_SCHEME", "http"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("SERVER_SOFTWARE", "a-web-server/1.0"),
            ("SERVER_NAME", "example.test"),
            ("SERVER_PORT", "80"),
            ("SERVER_ADDR", "192.0.2.1"),
            ("REMOTE_ADDR", "192.0.2.7"),
            ("REMOTE_PORT", "54321"),
            ("HTTP_HOST", "example.test"),
            ("HTTP_X_REQUEST_ID", "the-tests-own"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into();
        for (name, value) in self.headers.iter().filter(|(name, _)| *name != NEVER_TOLD) {
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
        if let Some((length, Announced::Yes)) = self.body {
            variables.push(("CONTENT_LENGTH".into(), length.to_string()));
        }
        variables
    }

    /// The same, with what web servers are known to send beside it and applications are not to see.
    fn sent(&self) -> Vec<(String, String)> {
        let mut variables = self.variables();
        for (name, value) in self.headers.iter().filter(|(name, _)| [NEVER_TOLD, "Content-Type"].contains(name)) {
            variables.push((format!("HTTP_{}", name.to_ascii_uppercase().replace('-', "_")), (*value).into()));
        }
        variables
    }
}

/// The connection to a socket of either kind.
pub enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// How long a socket may stay silent before a test gives up.
const PATIENCE: Duration = Duration::from_secs(90);

/// What can be read, and what can be written.
type Halves = (Box<dyn Read + Send>, Box<dyn Write + Send>);

impl Connection {
    fn halves(self) -> Halves {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(PATIENCE)).expect("a stream takes a limit");
                stream.set_nodelay(true).expect("a stream can be set up");
                (Box::new(stream.try_clone().expect("a descriptor can be duplicated")), Box::new(stream))
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(PATIENCE)).expect("a stream takes a limit");
                (Box::new(stream.try_clone().expect("a descriptor can be duplicated")), Box::new(stream))
            }
        }
    }
}

/// A request that is under way.
pub struct Exchange {
    pub up: Up,
    pub down: Down,
}

/// The request's body, as it goes up.
pub enum Up {
    Http { stream: Box<dyn Write + Send>, is_chunked: bool },
    FastCgi { stream: Box<dyn Write + Send> },
    Cgi { stdin: Option<ChildStdin> },
}

impl Up {
    pub fn piece(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Http { stream, is_chunked: true } => {
                stream.write_all(&[format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat())
            }
            Self::Http { stream, is_chunked: false } => stream.write_all(bytes),
            Self::FastCgi { stream } => bytes.chunks(32 << 10).try_for_each(|piece| {
                let mut bytes = Vec::with_capacity(piece.len() + 8);
                put_record(STDIN, piece, &mut bytes);
                stream.write_all(&bytes)
            }),
            Self::Cgi { stdin } => match stdin {
                Some(stdin) => stdin.write_all(bytes),
                None => Err(io::ErrorKind::BrokenPipe.into()),
            },
        }
    }

    /// There is no more of it.
    pub fn end(&mut self) -> io::Result<()> {
        match self {
            Self::Http { stream, is_chunked: true } => stream.write_all(b"0\r\n\r\n"),
            Self::Http { .. } => Ok(()),
            Self::FastCgi { stream } => {
                let mut bytes = Vec::new();
                put_record(STDIN, b"", &mut bytes);
                stream.write_all(&bytes)
            }
            Self::Cgi { stdin } => {
                drop(stdin.take());
                Ok(())
            }
        }
    }

    /// ABORT_REQUEST, where the protocol has such a thing.
    pub fn abort(&mut self) {
        if let Self::FastCgi { stream } = self {
            let mut bytes = Vec::new();
            put_record(ABORT_REQUEST, b"", &mut bytes);
            stream.write_all(&bytes).expect("the connection is open");
        }
    }
}

/// The answer, as it comes down.
pub struct Down {
    bytes: BufReader<Box<dyn Read + Send>>,
    is_http: bool,
    /// Set at the end of a FastCGI request that ended well.
    ended: Arc<Mutex<bool>>,
    /// The CGI process, whose exit code says whether it went well.
    pub process: Option<Child>,
    method: &'static str,
    left: Left,
    announced: Option<u64>,
    came: u64,
}

/// How much of a body is still to come.
enum Left {
    ToTheEnd,
    Bytes(u64),
    Chunks,
    Nothing,
}

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub status: u16,
    pub reason: String,
    pub headers: Vec<(String, String)>,
}

/// What comes of a body.
pub enum Piece {
    Data(Vec<u8>),
    /// Its end, and whether it can be seen to be all of it.
    End {
        is_whole: bool,
    },
}

impl Down {
    fn new(from: Box<dyn Read + Send>, is_http: bool, method: &'static str) -> Self {
        let (ended, process, left) = (Arc::default(), None, Left::ToTheEnd);
        let bytes = BufReader::with_capacity(64 << 10, from);
        Self { bytes, is_http, ended, process, method, left, announced: None, came: 0 }
    }

    /// The head; `None` where the connection ended before it.
    pub fn head(&mut self) -> Option<Head> {
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            self.bytes.read_until(b'\n', &mut line).ok().filter(|len| *len > 0)?;
            match String::from_utf8_lossy(&line).trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let status = match self.is_http {
            true => lines.remove(0).split_once(' ').map(|(_, status)| status.to_owned()).expect("a status line"),
            false => match lines.iter().position(|line| line.starts_with("Status: ")) {
                Some(at) => lines.remove(at)["Status: ".len()..].to_owned(),
                None => "200 OK".to_owned(),
            },
        };
        let (code, reason) = status.split_once(' ').unwrap_or((&status, ""));
        let fields = lines.iter().map(|line| line.split_once(": ").or(line.split_once(':')).expect("a field"));
        let mut headers: Vec<_> = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        let value = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
        let status = code.parse().expect("a status");
        let has_none = self.method == "HEAD" || status == 204 || status == 304;
        self.announced = value("content-length").and_then(|length| length.parse().ok()).filter(|_| !has_none);
        self.left = match self.announced {
            _ if has_none && self.is_http => Left::Nothing,
            _ if self.is_http && value("transfer-encoding").is_some() => Left::Chunks,
            Some(length) if self.is_http => Left::Bytes(length),
            _ => Left::ToTheEnd,
        };
        headers.retain(|(name, _)| !OF_THE_WAY.iter().any(|(own, _)| own.eq_ignore_ascii_case(name)));
        // Of fields with different names the order says nothing (RFC 9110 5.3).
        headers.sort_by(|a, b| a.0.cmp(&b.0));
        Some(Head { status, reason: reason.to_owned(), headers })
    }

    pub fn piece(&mut self) -> Piece {
        let piece = match self.left {
            Left::Nothing | Left::Bytes(0) => None,
            Left::Bytes(left) => self.read(left),
            Left::ToTheEnd => self.read(u64::MAX),
            Left::Chunks => {
                let mut line = String::new();
                let length = match self.bytes.read_line(&mut line) {
                    Ok(_) => u64::from_str_radix(line.trim_end(), 16).ok(),
                    Err(_) => None,
                };
                match length {
                    Some(0) => {
                        self.left = Left::Nothing;
                        return Piece::End { is_whole: self.announced.is_none_or(|length| length == self.came) };
                    }
                    Some(length) => self.chunk(length),
                    None => return Piece::End { is_whole: false },
                }
            }
        };
        match piece {
            Some(data) => {
                self.came += data.len() as u64;
                if let Left::Bytes(left) = &mut self.left {
                    *left -= data.len() as u64;
                }
                Piece::Data(data)
            }
            None => {
                let as_announced = self.announced.is_none_or(|length| length == self.came);
                let ended_well = match &mut self.process {
                    _ if self.is_http => true,
                    Some(process) => process.wait().expect("a child can be waited for").success(),
                    None => *self.ended.lock().unwrap(),
                };
                // A chunk that broke off, or a head and nothing that says where its body ends.
                let is_whole = as_announced && ended_well && !matches!(self.left, Left::Chunks);
                Piece::End { is_whole }
            }
        }
    }

    fn read(&mut self, at_most: u64) -> Option<Vec<u8>> {
        let buffer = self.bytes.fill_buf().unwrap_or_default();
        let len = buffer.len().min(usize::try_from(at_most).unwrap_or(usize::MAX));
        let data = buffer[..len].to_vec();
        self.bytes.consume(len);
        (len > 0).then_some(data)
    }

    fn chunk(&mut self, length: u64) -> Option<Vec<u8>> {
        let mut data = vec![0; usize::try_from(length).ok()? + 2];
        self.bytes.read_exact(&mut data).ok()?;
        data.truncate(data.len() - 2);
        Some(data)
    }
}

/// Fields that belong to the connection or the moment, and not to the answer.
pub const OF_THE_WAY: [(&str, &str); 7] = [
    ("Connection", "HTTP's framing"),
    ("Keep-Alive", "HTTP's framing"),
    ("Transfer-Encoding", "HTTP's framing"),
    ("Date", "the HTTP gateway adds it; behind FastCGI and CGI the web server does"),
    ("Server", "that of the HTTP server in front"),
    ("X-Request-Id", "the name of the request"),
    ("Via", "an HTTP server's answer has passed a proxy, and `--via off` keeps that quiet"),
];

/// An answer as a whole.
#[derive(Debug, Clone)]
pub struct Came {
    pub head: Head,
    /// The first of it; of all of it the length and the digest.
    pub body: Vec<u8>,
    pub length: u64,
    pub sha256: String,
    pub is_whole: bool,
}

/// How much of a body is kept.
const KEPT: usize = 1 << 20;

impl Came {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Exchange {
    pub fn over_http(connection: Connection, asked: &Asked) -> Self {
        let mut head =
            format!("{} {} HTTP/1.1\r\nHost: example.test\r\nConnection: close\r\n", asked.method, asked.target());
        for (name, value) in asked.headers.iter().chain(&[("X-Request-Id", "the-tests-own")]) {
            head += &format!("{name}: {value}\r\n");
        }
        let is_chunked = matches!(asked.body, Some((_, Announced::No)));
        match asked.body {
            Some((length, Announced::Yes)) => head += &format!("Content-Length: {length}\r\n"),
            Some((_, Announced::No)) => head += "Transfer-Encoding: chunked\r\n",
            None => {}
        }
        let (reader, mut stream) = connection.halves();
        stream.write_all(format!("{head}\r\n").as_bytes()).expect("the bridge takes a request");
        Self { up: Up::Http { stream, is_chunked }, down: Down::new(reader, true, asked.method) }
    }

    pub fn over_fastcgi(connection: Connection, asked: &Asked) -> Self {
        let mut params = Vec::new();
        for (name, value) in asked.sent() {
            for len in [name.len(), value.len()] {
                match u8::try_from(len) {
                    Ok(len) if len < 128 => params.push(len),
                    _ => params.extend((len as u32 | 1 << 31).to_be_bytes()),
                }
            }
            params.extend(name.bytes().chain(value.bytes()));
        }
        let mut bytes = Vec::new();
        put_record(BEGIN_REQUEST, &[0, 1, 0, 0, 0, 0, 0, 0], &mut bytes);
        put_record(PARAMS, &params, &mut bytes);
        put_record(PARAMS, b"", &mut bytes);
        let (reader, mut stream) = connection.halves();
        stream.write_all(&bytes).expect("the bridge takes a request");
        let ended = Arc::default();
        let records = Records {
            from: BufReader::with_capacity(64 << 10, reader),
            left: 0,
            padding: 0,
            ended: Arc::clone(&ended),
        };
        Self { up: Up::FastCgi { stream }, down: Down { ended, ..Down::new(Box::new(records), false, asked.method) } }
    }

    pub fn as_cgi(mut command: Command, asked: &Asked) -> Self {
        command.env_clear().envs(asked.sent()).env("PATH", "/usr/bin:/bin");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the bridge starts");
        let stdin = child.stdin.take();
        let stdout = Box::new(child.stdout.take().expect("a pipe"));
        Self { up: Up::Cgi { stdin }, down: Down { process: Some(child), ..Down::new(stdout, false, asked.method) } }
    }

    /// Sends the body while the answer is read, to the end of both.
    pub fn run(self, asked: &Asked) -> Option<Came> {
        let Self { mut up, mut down } = self;
        let length = asked.body.map_or(0, |(length, _)| length);
        std::thread::scope(|scope| {
            // Who has answered need not read all of it.
            let writer = scope.spawn(move || {
                let _ = blocks(length).try_for_each(|block| up.piece(&block)).and_then(|()| up.end());
                up
            });
            let came = down.head().map(|head| {
                let (mut body, mut length, mut hash) = (Vec::new(), 0, Sha256::new());
                loop {
                    match down.piece() {
                        Piece::Data(data) => {
                            length += data.len() as u64;
                            hash.update(&data);
                            body.extend_from_slice(&data[..data.len().min(KEPT - body.len())]);
                        }
                        Piece::End { is_whole } => {
                            break Came { head, body, length, sha256: hexadecimal(&hash.finalize()), is_whole };
                        }
                    }
                }
            });
            if let Some(process) = &mut down.process {
                let _ = process.wait();
            }
            // What it still writes to is read by nobody.
            drop(down);
            drop(writer.join());
            came
        })
    }
}

const BEGIN_REQUEST: u8 = 1;
const ABORT_REQUEST: u8 = 2;
const END_REQUEST: u8 = 3;
const PARAMS: u8 = 4;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;

fn put_record(record_type: u8, content: &[u8], bytes: &mut Vec<u8>) {
    let [high, low] = u16::try_from(content.len()).expect("it fits a record").to_be_bytes();
    bytes.extend([1, record_type, 0, 1, high, low, 0, 0]);
    bytes.extend_from_slice(content);
}

/// STDOUT of the records that come for a request.
struct Records {
    from: BufReader<Box<dyn Read + Send>>,
    left: usize,
    padding: usize,
    ended: Arc<Mutex<bool>>,
}

impl Read for Records {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            io::copy(&mut (&mut self.from).take(self.padding as u64), &mut io::sink())?;
            self.padding = 0;
            let mut header = [0; 8];
            if let Err(error) = self.from.read_exact(&mut header) {
                return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(0) } else { Err(error) };
            }
            let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
            self.padding = usize::from(header[6]);
            let is_management = header[2..4] == [0, 0];
            assert!(is_management || header[2..4] == [0, 1], "expected a record of the one request, got {header:?}");
            match header[1] {
                STDOUT => self.left = length,
                END_REQUEST => {
                    let mut body = [0; 8];
                    self.from.read_exact(&mut body)?;
                    // It went well if both statuses say so.
                    *self.ended.lock().unwrap() = body[..5] == [0; 5];
                    return Ok(0);
                }
                _ => drop(io::copy(&mut (&mut self.from).take(length as u64), &mut io::sink())?),
            }
        }
        let len = buffer.len().min(self.left);
        let len = self.from.read(&mut buffer[..len])?;
        self.left -= len;
        Ok(len)
    }
}
