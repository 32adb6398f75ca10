//! A folder of scripts that a test writes, the host that runs them, and the lines that are logged meanwhile.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::fmt::{Debug, Write as _};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gatespan::application::driver::{Response, call};
use gatespan::application::{Application, Environ, Error, Input, InputError, Source, Variables};
use gatespan::upstream::cgi::{Config, Host};
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::span;

/// The time within which whatever a test waits for has to happen.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits for something that must not take long.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it takes too long")
}

/// A folder of scripts.
pub struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("gatespan-").tempdir().expect("a folder can be made");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a folder's mode can be set");
        let site = Self { folder };
        for name in ["cgi-bin", "marks", "spool"] {
            fs::create_dir(site.path(name)).expect("a folder can be made");
        }
        site
    }

    /// With one script, of the shell, called `script`.
    pub fn of(text: &str) -> Self {
        let site = Self::new();
        site.shell("script", text);
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a script of the shell, to which `$MARKS` is a folder where it can leave something.
    pub fn shell(&self, name: &str, text: &str) {
        self.script(name, &format!("#!/bin/sh\nMARKS={}\n{text}\n", self.path("marks").display()));
    }

    pub fn script(&self, name: &str, text: &str) {
        let path = self.path("cgi-bin").join(name);
        fs::write(&path, text).expect("a script can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a file's mode can be set");
    }

    /// Compiles a program in C.
    pub fn program(&self, name: &str, source: &str) {
        let file = self.path(&format!("{name}.c"));
        fs::write(&file, source).expect("a source can be written");
        let output = std::process::Command::new("gcc")
            .args(["-O1", "-o"])
            .arg(self.path("cgi-bin").join(name))
            .arg(&file)
            .output()
            .expect("gcc is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn config(&self) -> Config {
        let mut config = Config::default();
        config.roots = vec![self.path("cgi-bin")];
        config.spool_folder = Some(self.path("spool"));
        config.kill_grace = Duration::from_secs(2);
        config
    }

    pub fn host(&self, change: impl FnOnce(&mut Config)) -> Arc<Host> {
        let mut config = self.config();
        change(&mut config);
        Arc::new(Host::new(config).expect("the folder can be used"))
    }

    /// Waits until a script has left a mark, and gives what it wrote there.
    pub async fn mark(&self, name: &str) -> String {
        let path = self.path("marks").join(name);
        soon(async {
            loop {
                match fs::read_to_string(&path) {
                    Ok(text) if text.ends_with('\n') => return text.trim_end().to_owned(),
                    _ => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
        })
        .await
    }

    pub fn has_mark(&self, name: &str) -> bool {
        self.path("marks").join(name).exists()
    }

    /// A pipe with a name among the marks, from which scripts can read without waiting for anybody to open it.
    pub fn fifo(&self, name: &str) -> fs::File {
        let path = self.path("marks").join(name);
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("there is a mkfifo");
        assert!(made.success());
        fs::File::options().read(true).write(true).open(path).expect("it can be opened")
    }

    pub fn spooled_files(&self) -> usize {
        fs::read_dir(self.path("spool")).expect("the folder is there").count()
    }
}

/// A GET below the host's root.
pub fn get(target: &str) -> Environ {
    request("GET", target)
}

pub fn request(method: &str, target: &str) -> Environ {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Environ::new(Variables::from_iter([
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("SERVER_NAME", "example.org"),
        ("SERVER_PORT", "80"),
        ("REQUEST_METHOD", method),
        ("SCRIPT_NAME", ""),
        ("PATH_INFO", path),
        ("QUERY_STRING", query),
    ]))
}

/// A POST of a body that is there.
pub fn post(target: &str, body: impl Into<Bytes>) -> Environ {
    let body = body.into();
    let mut environ = request("POST", target);
    environ.set("CONTENT_LENGTH", body.len().to_string()).expect("it may be set");
    environ.with_input(Input::from_bytes(body))
}

/// The sending side of a body that comes bit by bit.
pub type Sender = mpsc::Sender<Result<Bytes, InputError>>;

struct Channel(mpsc::Receiver<Result<Bytes, InputError>>);

impl Source for Channel {
    fn poll_chunk(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Result<Bytes, InputError>>> {
        self.0.poll_recv(cx)
    }
}

/// A POST of a body that the test sends, with a length or without.
pub fn post_slowly(target: &str, length: Option<u64>) -> (Environ, Sender) {
    let (sender, receiver) = mpsc::channel(4);
    let mut environ = request("POST", target);
    match length {
        Some(length) => environ.set("CONTENT_LENGTH", length.to_string()).expect("it may be set"),
        None => environ.set("HTTP_TRANSFER_ENCODING", "chunked").expect("it may be set"),
    }
    (environ.with_input(Input::from_source(Channel(receiver), length)), sender)
}

/// What came of a request.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub reason: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// Why it is not whole.
    pub cut: Option<String>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The value of a line `NAME=value` of the body.
    pub fn line(&self, name: &str) -> Option<&str> {
        self.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Has a request answered, to the end.
pub async fn ask(application: impl Application, environ: Environ) -> Answer {
    soon(async {
        match call(application, environ).await {
            Ok(response) => read(response).await,
            Err(error) => panic!("the host answers by itself, and not {error}"),
        }
    })
    .await
}

/// The same for requests that the host leaves to the gateway.
pub async fn refused(application: impl Application, environ: Environ) -> Error {
    match soon(call(application, environ)).await {
        Ok(response) => panic!("expected an error, got {:?}", response.head),
        Err(error) => error,
    }
}

/// All of a response.
pub async fn read(mut response: Response) -> Answer {
    let (mut body, mut cut) = (Vec::new(), None);
    while let Some(frame) = soon(response.body.next()).await {
        match frame {
            Ok(gatespan::application::Frame::Data(data)) => body.extend_from_slice(&data),
            Ok(_) => {}
            Err(error) => {
                cut = Some(error.to_string());
                break;
            }
        }
    }
    soon(response.body.close()).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Answer {
        status: response.head.status.code(),
        reason: text(response.head.status.reason()),
        headers: response.head.headers.iter().map(|(name, value)| (text(name), text(value))).collect(),
        body: text(&body),
        cut,
    }
}

/// The next piece of data.
pub async fn next(response: &mut Response) -> String {
    loop {
        let frame = soon(response.body.next()).await.expect("more of the body").expect("it is not cut");
        if let gatespan::application::Frame::Data(data) = frame {
            return String::from_utf8_lossy(&data).into_owned();
        }
    }
}

/// Whether there is such a process, other than a dead one that nobody has waited for.
pub fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

/// Whether there is such a process, dead or alive.
pub fn is_there(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

/// Waits until a process is gone and has been waited for.
pub async fn gone(pid: &str) {
    let begun = Instant::now();
    while is_there(pid) {
        assert!(begun.elapsed() < SOON, "process {pid} is still there");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What this thread logs by `tracing` from the call on. One line each: level, message, fields.
pub fn logged() -> Logged {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let guard = tracing::subscriber::set_default(Lines(lines.clone()));
    Logged { lines, _guard: guard }
}

pub struct Logged {
    lines: Arc<Mutex<Vec<String>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Logged {
    /// All lines of level INFO and up.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("nobody panics with it").clone()
    }

    pub fn with(&self, text: &str) -> Vec<String> {
        self.lines().into_iter().filter(|line| line.contains(text)).collect()
    }

    /// Waits until such a line is there.
    pub async fn wait_for(&self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            if let Some(line) = self.with(text).pop() {
                return line;
            }
            assert!(begun.elapsed() < SOON, "{text:?} is not logged, but {:#?}", self.lines());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

struct Lines(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO && metadata.target().starts_with("gatespan")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().expect("nobody panics with it").push(line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
