//! The ways in and the ways out, a line for each, and the bridges between them.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::bridge::{Bridge, tool};
use super::exchange::{Asked, Connection, Exchange};
use crate::support::process::{Listening, Scratch, Server, certificate, free_address};

/// How requests come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http,
    FastCgi,
    Cgi,
}

/// Where FROM listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Tcp,
    Unix,
    /// A socket that is handed over.
    Descriptor,
    /// Nowhere: the web server starts a process for each request.
    Process,
}

/// A way in.
#[derive(Debug, Clone, Copy)]
pub struct From {
    pub name: &'static str,
    pub protocol: Protocol,
    pub at: At,
}

pub const FROM: &[From] = &[
    From { name: "http://HOST:PORT", protocol: Protocol::Http, at: At::Tcp },
    From { name: "http:/SOCKET", protocol: Protocol::Http, at: At::Unix },
    From { name: "fastcgi:/SOCKET", protocol: Protocol::FastCgi, at: At::Unix },
    From { name: "fastcgi://HOST:PORT", protocol: Protocol::FastCgi, at: At::Tcp },
    From { name: "fastcgi:fd", protocol: Protocol::FastCgi, at: At::Descriptor },
    From { name: "cgi:", protocol: Protocol::Cgi, at: At::Process },
];

/// What is at the far end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Far {
    /// The tests' application.
    Application,
    /// The built-in one that says what it was told.
    Environ,
    /// The built-in one that gives its body back.
    Echo,
    /// A folder.
    Files,
}

/// A way out.
#[derive(Clone, Copy)]
pub struct To {
    pub name: &'static str,
    pub far: Far,
    /// The word of the command line.
    pub address: fn(&Servers) -> String,
    /// The options that it needs.
    pub options: fn(&Servers) -> Vec<String>,
}

const fn to(name: &'static str, far: Far, address: fn(&Servers) -> String) -> To {
    To { name, far, address, options: |_| Vec::new() }
}

pub const TO: &[To] = &[
    to("cgi:/PROGRAM", Far::Application, |servers| format!("cgi:{}", servers.text("cgi-bin/app"))),
    to("cgi:/FOLDER/", Far::Application, |servers| format!("cgi:{}/", servers.text("cgi-bin"))),
    to("fastcgi:/SOCKET", Far::Application, |servers| format!("fastcgi:{}", servers.text("app.sock"))),
    to("fastcgi://HOST:PORT", Far::Application, |servers| format!("fastcgi://{}", servers.fastcgi)),
    to("fastcgi:exec:/PROGRAM", Far::Application, |servers| format!("fastcgi:exec:{}", servers.text("cgi-bin/app"))),
    to("http://HOST:PORT", Far::Application, |servers| format!("http://{}", servers.http)),
    to("http:/SOCKET", Far::Application, |servers| format!("http:{}", servers.text("http.sock"))),
    To {
        options: |servers| vec!["--ca-file".into(), servers.text("certificate.pem")],
        ..to("https://HOST:PORT", Far::Application, |servers| format!("https://{}", servers.https))
    },
    to("app:environ", Far::Environ, |_| "app:environ".into()),
    to("app:echo", Far::Echo, |_| "app:echo".into()),
    to("file:/FOLDER", Far::Files, |servers| format!("file:{}", servers.text("htdocs"))),
];

/// Cells that there are not, each with the reason.
pub const NO_CELLS: &[(&str, &str, &str)] = &[(
    "cgi:",
    "fastcgi:exec:",
    "a CGI program lives for one request, and would start, wait for and end its FastCGI program each time; the tool says so, and exits with 2",
)];

/// Whether a name is covered by a list of beginnings of names.
pub fn covers(beginnings: &[&str], name: &str) -> bool {
    beginnings.iter().any(|beginning| name.starts_with(beginning))
}

/// The far ends that run by themselves.
pub struct Servers {
    pub scratch: Scratch,
    fastcgi: std::net::SocketAddr,
    http: std::net::SocketAddr,
    https: std::net::SocketAddr,
    _running: Vec<Server>,
}

impl Servers {
    fn start() -> Self {
        let scratch = Scratch::new();
        let (fastcgi, http) = (free_address(), free_address());
        let (unix, http_unix) = (scratch.path("app.sock"), scratch.path("http.sock"));
        let mut command = Command::new(scratch.path("cgi-bin/app"));
        command.arg(format!("http:{}", http_unix.display()));
        let running = vec![
            scratch.application(&Listening::Unix(unix), &[]),
            scratch.application(&Listening::Tcp(fastcgi), &[]),
            scratch.application(&Listening::Http(http), &[]),
            Server::start(&scratch, "http-unix", command, &[]).ready_at(&http_unix),
        ];
        let https = with_tls(&scratch, http);
        scratch.write("htdocs/file.txt", "a file\n");
        // So that its fields are the same each time.
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let file = fs::File::options().write(true).open(scratch.path("htdocs/file.txt")).expect("it was made just now");
        file.set_modified(then).expect("a file's time can be set");
        fs::File::create(scratch.path("htdocs/large.bin"))
            .and_then(|file| file.set_len(LARGE))
            .expect("a file can be made");
        Self { scratch, fastcgi, http, https, _running: running }
    }

    pub fn text(&self, name: &str) -> String {
        self.scratch.path(name).display().to_string()
    }
}

/// The length of what is large.
pub const LARGE: u64 = 100_000_000;

/// TLS in front of an HTTP server, for as long as the process runs: what a connection says goes on as it is.
fn with_tls(scratch: &Scratch, http: std::net::SocketAddr) -> std::net::SocketAddr {
    let (key, certificate) = certificate(scratch, "127.0.0.1");
    let certificates = vec![CertificateDer::from_pem_file(certificate).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_file(key).expect("a key");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key).expect("a pair");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.set_nonblocking(true).expect("a socket can be set up");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut client = acceptor.accept(client).await?;
                    let mut server = tokio::net::TcpStream::connect(http).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
    });
    address
}

/// A cell of the matrix: a bridge that runs, or for CGI the command line of one.
pub struct Cell {
    pub from: &'static From,
    pub to: &'static To,
    bridge: Option<Bridge>,
    socket: PathBuf,
    words: Vec<String>,
}

impl Cell {
    fn start(servers: &Servers, from: &'static From, to: &'static To, options: &[&str]) -> Self {
        let number = {
            static NEXT: Mutex<usize> = Mutex::new(0);
            let mut next = NEXT.lock().unwrap();
            *next += 1;
            *next
        };
        let socket = servers.scratch.path(&format!("front-{number}.sock"));
        let address = match (from.protocol, from.at) {
            (Protocol::Http, At::Tcp) => "http://127.0.0.1:0".to_owned(),
            (Protocol::FastCgi, At::Tcp) => "fastcgi://127.0.0.1:0".to_owned(),
            (Protocol::Http, At::Unix) => format!("http:{}", socket.display()),
            (Protocol::FastCgi, At::Unix) => format!("fastcgi:{}", socket.display()),
            (Protocol::FastCgi, At::Descriptor) => "fastcgi:fd".to_owned(),
            (Protocol::Http, At::Descriptor) => "http:fd".to_owned(),
            (Protocol::Cgi, _) | (_, At::Process) => "cgi:".to_owned(),
        };
        // What stands behind TO is nobody's word where FROM is cgi:.
        let mut words: Vec<String> = ["bridge", &address].map(str::to_owned).into();
        words.extend((to.options)(servers));
        words.extend(options.iter().map(|option| (*option).to_owned()));
        words.push((to.address)(servers));
        let mut cell = Self { from, to, bridge: None, socket, words };
        if from.at != At::Process {
            let mut command = cell.command();
            // Scripts get some of the bridge's own environment, and whoever runs the tests has another than the next.
            command.env_clear().env("PATH", "/usr/bin:/bin");
            if from.at == At::Descriptor {
                let listener = UnixListener::bind(&cell.socket).expect("a socket can be made");
                command.stdin(OwnedFd::from(listener));
            }
            cell.bridge = Some(Bridge::started(command));
        }
        cell
    }

    fn command(&self) -> Command {
        tool(&self.words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub fn name(&self) -> String {
        format!("{} to {}", self.from.name, self.to.name)
    }

    /// A request whose body and answer are the test's to send and to read.
    pub fn begin(&self, asked: &Asked) -> Exchange {
        let connection = || match (&self.bridge, self.from.at) {
            (Some(bridge), At::Tcp) => Connection::Tcp(TcpStream::connect(&bridge.place).expect("it listens")),
            _ => Connection::Unix(UnixStream::connect(&self.socket).expect("it listens")),
        };
        match self.from.protocol {
            Protocol::Http => Exchange::over_http(connection(), asked),
            Protocol::FastCgi => Exchange::over_fastcgi(connection(), asked),
            Protocol::Cgi => Exchange::as_cgi(self.command(), asked),
        }
    }
}

/// All cells.
pub struct Matrix {
    // Before the servers behind them.
    pub cells: Vec<Cell>,
    pub servers: Servers,
}

impl Matrix {
    /// With these options for each bridge, and without the ways out that do not take them.
    pub fn start(options: &[&str], is_chosen: impl Fn(&To) -> bool) -> Self {
        let servers = Servers::start();
        let pairs: Vec<(&From, &To)> = FROM
            .iter()
            .flat_map(|from| TO.iter().map(move |to| (from, to)))
            .filter(|(from, to)| !NO_CELLS.iter().any(|(a, b, _)| covers(&[a], from.name) && covers(&[b], to.name)))
            .filter(|(_, to)| is_chosen(to))
            .collect();
        let cells = at_once(&pairs, |(from, to)| Cell::start(&servers, from, to, options));
        Self { cells, servers }
    }

    /// The one that all tests share that are running.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Matrix>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let matrix = Arc::new(Self::start(&[], |_| true));
            *shared = Arc::downgrade(&matrix);
            matrix
        })
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        let cells: Vec<_> = self.cells.drain(..).map(|cell| Mutex::new(Some(cell))).collect();
        at_once(&cells, |cell| drop(cell.lock().unwrap().take()));
    }
}

/// Does the same with all of them, a few at a time, and gives what came of it in their order.
pub fn at_once<T: Sync, R: Send>(all: &[T], each: impl Fn(&T) -> R + Sync) -> Vec<R> {
    const AT_ONCE: usize = 4;
    let next = std::sync::atomic::AtomicUsize::new(0);
    let came = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(one) = {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    all.get(index).map(|one| (index, one))
                } {
                    let made = each(one.1);
                    came.lock().unwrap().push((one.0, made));
                }
            });
        }
    });
    let mut came = came.into_inner().unwrap();
    came.sort_by_key(|(index, _)| *index);
    came.into_iter().map(|(_, made)| made).collect()
}
