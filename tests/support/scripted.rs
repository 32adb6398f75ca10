//! FastCGI servers without sockets, for tests of what forwards to them: one that does what a list of steps says, read and written byte by byte with
//! nothing of ours between, and our own gateway.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gatespan::application::{AnyApplication, Environ, Error, Peer};
use gatespan::gateway::fastcgi::{Config, Gateway, serve_connection};
use gatespan::protocol::fastcgi::{RecordType, RequestId, Role, put_record};
use gatespan::upstream::fastcgi::Connect;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// One record.
pub fn record(record_type: RecordType, id: u16, content: &[u8], padding: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_record(record_type, RequestId(id), content, padding, &mut bytes);
    bytes
}

pub fn stdout(content: &[u8]) -> Vec<u8> {
    record(RecordType::Stdout, 1, content, 0)
}

pub fn stderr(content: &[u8]) -> Vec<u8> {
    record(RecordType::Stderr, 1, content, 0)
}

/// END_REQUEST.
pub fn end(application_status: u32, protocol_status: u8) -> Vec<u8> {
    let [a, b, c, d] = application_status.to_be_bytes();
    record(RecordType::EndRequest, 1, &[a, b, c, d, protocol_status, 0, 0, 0], 0)
}

/// A whole answer in which nothing is odd.
pub fn answer(text: &str) -> Vec<u8> {
    let head = format!("Content-Type: text/plain\r\n\r\n{text}");
    [stdout(head.as_bytes()), stdout(b""), end(0, 0)].concat()
}

/// What a server does with one connection; at the end it closes it.
pub type Script = Vec<Step>;

#[derive(Debug, Clone)]
pub enum Step {
    /// Takes no connection.
    Refuse,
    /// Never says whether it takes a connection.
    NeverConnect,
    /// Reads a request to the end of its body.
    Request,
    /// Reads a request to the end of its params.
    Params,
    /// Reads a request to the end of a Filter's file.
    FilterRequest,
    Send(Vec<u8>),
    SendInPieces(Vec<u8>, usize),
    /// Sends the same for as long as anybody takes it.
    Repeat(Vec<u8>, Duration),
    Sleep(Duration),
    /// Reads so many bytes, whatever they are.
    Read(usize),
    /// Closes its side, and no more.
    CloseWriting,
    /// Does nothing, for ever.
    Hang,
    /// Reads until the other side closes.
    Closed,
}

/// A server that does what it is told, one script for each connection; it refuses any more.
#[derive(Clone)]
pub struct Scripted {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    scripts: Mutex<VecDeque<Script>>,
    /// What it does once there is no script left.
    then: Option<Script>,
    connections: AtomicUsize,
    finished: AtomicUsize,
    aborts: AtomicUsize,
    requests: Mutex<Vec<Recorded>>,
}

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// All ids that its records had.
    pub ids: Vec<u16>,
    pub role: AskedRole,
    pub keeps_connection: bool,
    pub params: Vec<(Vec<u8>, Vec<u8>)>,
    pub stdin: Vec<u8>,
    pub data: Vec<u8>,
    /// The most bytes of content and padding that a record had.
    pub longest_record: usize,
    /// Whether no pair went on in another record.
    pub pairs_end_with_records: bool,
    encoded: Vec<u8>,
    ends: Vec<usize>,
}

/// A role, none at first.
#[derive(Debug, Clone, Copy, Default)]
pub struct AskedRole(u16);

impl PartialEq<Role> for AskedRole {
    fn eq(&self, other: &Role) -> bool {
        Role::from(self.0) == *other
    }
}

impl Scripted {
    pub fn new(scripts: impl IntoIterator<Item = Script>) -> Self {
        let scripts = Mutex::new(scripts.into_iter().collect());
        Self { state: Arc::new(State { scripts, ..State::default() }) }
    }

    /// One that gives the same answer on each connection.
    pub fn answering(text: &str) -> Self {
        let then = Some(vec![Step::Request, Step::Send(answer(text)), Step::Closed]);
        Self { state: Arc::new(State { then, ..State::default() }) }
    }

    /// How often a connection was asked for.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    pub fn aborts(&self) -> usize {
        self.state.aborts.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> Vec<Recorded> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Waits until that many scripts have come to their end.
    pub async fn finished(&self, scripts: usize) {
        let finished = async {
            while self.state.finished.load(Ordering::SeqCst) < scripts {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), finished).await.expect("the server's script ends");
    }
}

impl Connect for Scripted {
    type Stream = DuplexStream;

    async fn connect(&self) -> io::Result<DuplexStream> {
        self.state.connections.fetch_add(1, Ordering::SeqCst);
        let script = self.state.scripts.lock().unwrap().pop_front().or(self.state.then.clone());
        let refused = || Err(io::Error::from(io::ErrorKind::ConnectionRefused));
        let Some(script) = script else { return refused() };
        match script.first() {
            Some(Step::Refuse) => return refused(),
            Some(Step::NeverConnect) => std::future::pending().await,
            _ => {}
        }
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let state = self.state.clone();
        tokio::spawn(async move {
            // The other side may close whenever it likes.
            let _ = run(script, theirs, &state).await;
            state.finished.fetch_add(1, Ordering::SeqCst);
        });
        Ok(ours)
    }
}

async fn run(script: Script, mut stream: DuplexStream, state: &State) -> io::Result<()> {
    for step in script {
        match step {
            Step::Refuse | Step::NeverConnect => {}
            Step::Request => request(&mut stream, RecordType::Stdin, state).await?,
            Step::Params => request(&mut stream, RecordType::Params, state).await?,
            Step::FilterRequest => request(&mut stream, RecordType::Data, state).await?,
            Step::Send(bytes) => stream.write_all(&bytes).await?,
            Step::SendInPieces(bytes, size) => {
                for piece in bytes.chunks(size.max(1)) {
                    stream.write_all(piece).await?;
                    tokio::task::yield_now().await;
                }
            }
            Step::Repeat(bytes, pause) => loop {
                stream.write_all(&bytes).await?;
                match pause.is_zero() {
                    true => tokio::task::yield_now().await,
                    false => tokio::time::sleep(pause).await,
                }
            },
            Step::Sleep(time) => tokio::time::sleep(time).await,
            Step::Read(len) => drop(stream.read_exact(&mut vec![0; len]).await?),
            Step::CloseWriting => stream.shutdown().await?,
            Step::Hang => std::future::pending().await,
            Step::Closed => loop {
                let (record_type, ..) = read_record(&mut stream).await?;
                if record_type == RecordType::AbortRequest {
                    state.aborts.fetch_add(1, Ordering::SeqCst);
                }
            },
        }
    }
    Ok(())
}

/// Reads one record: its type, its id, its content and the length of both with the padding.
async fn read_record(stream: &mut DuplexStream) -> io::Result<(RecordType, u16, Vec<u8>, usize)> {
    let mut header = [0; 8];
    stream.read_exact(&mut header).await?;
    let content = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let mut bytes = vec![0; content + usize::from(header[6])];
    stream.read_exact(&mut bytes).await?;
    let len = bytes.len();
    bytes.truncate(content);
    Ok((header[1].into(), u16::from_be_bytes([header[2], header[3]]), bytes, len))
}

async fn request(stream: &mut DuplexStream, until: RecordType, state: &State) -> io::Result<()> {
    let mut request = Recorded::default();
    loop {
        let (record_type, id, content, len) = read_record(stream).await?;
        if !request.ids.contains(&id) {
            request.ids.push(id);
        }
        request.longest_record = request.longest_record.max(len);
        match record_type {
            RecordType::BeginRequest => {
                request.role = AskedRole(u16::from_be_bytes([content[0], content[1]]));
                request.keeps_connection = content[2] & 1 == 1;
            }
            RecordType::Params => {
                request.encoded.extend_from_slice(&content);
                request.ends.push(request.encoded.len());
            }
            RecordType::Stdin => request.stdin.extend_from_slice(&content),
            RecordType::Data => request.data.extend_from_slice(&content),
            RecordType::AbortRequest => drop(state.aborts.fetch_add(1, Ordering::SeqCst)),
            _ => {}
        }
        if content.is_empty() && record_type == until {
            request.take_params_apart();
            state.requests.lock().unwrap().push(request);
            return Ok(());
        }
    }
}

impl Recorded {
    fn take_params_apart(&mut self) {
        let mut at = 0;
        let mut pair_ends = vec![0];
        let length = |at: &mut usize| {
            let long = self.encoded[*at] & 0x80 != 0;
            let bytes = &self.encoded[*at..*at + if long { 4 } else { 1 }];
            *at += bytes.len();
            bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)) & 0x7fff_ffff
        };
        while at < self.encoded.len() {
            let (name, value) = (length(&mut at), length(&mut at));
            let (start, middle) = (at, at + name);
            at = middle + value;
            self.params.push((self.encoded[start..middle].to_vec(), self.encoded[middle..at].to_vec()));
            pair_ends.push(at);
        }
        self.pairs_end_with_records = self.ends.iter().all(|end| pair_ends.contains(end));
    }
}

/// Our own gateway, with a connection of its own for each that is asked for.
#[derive(Clone)]
pub struct Application {
    gateway: Arc<Gateway<AnyApplication>>,
    connections: Arc<AtomicUsize>,
    /// How many connections are served at once; the others wait to be accepted.
    workers: Arc<Semaphore>,
}

impl Application {
    pub fn new(application: impl gatespan::Application) -> Self {
        Self::with(application, false)
    }

    /// One that says that it takes several requests at once on a connection.
    pub fn multiplexing(application: impl gatespan::Application) -> Self {
        Self::with(application, true)
    }

    fn with(application: impl gatespan::Application, announce_multiplexing: bool) -> Self {
        let config = Config { allow: Vec::new(), announce_multiplexing, ..Config::default() };
        Self {
            gateway: Arc::new(Gateway::new(AnyApplication::new(application), config)),
            connections: Arc::default(),
            workers: Arc::new(Semaphore::new(1000)),
        }
    }

    /// One like php-fpm with so many processes, where each request takes 10 ms.
    pub fn one_at_a_time(workers: usize) -> Self {
        async fn application(_: Environ, start_response: gatespan::StartResponse) -> Result<&'static str, Error> {
            tokio::time::sleep(Duration::from_millis(10)).await;
            start_response.start("200 OK", [("Content-Type", "text/plain")])?;
            Ok("done")
        }
        Self { workers: Arc::new(Semaphore::new(workers)), ..Self::new(application) }
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Connect for Application {
    type Stream = DuplexStream;

    async fn connect(&self) -> io::Result<DuplexStream> {
        self.connections.fetch_add(1, Ordering::SeqCst);
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (gateway, workers) = (self.gateway.clone(), self.workers.clone());
        tokio::spawn(async move {
            let _worker = workers.acquire().await;
            serve_connection(theirs, Peer::Unknown, &gateway, &CancellationToken::new()).await
        });
        Ok(ours)
    }
}
