//! The servers' side of a test: folders, configurations made from the fixtures, processes that end with the test.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use rustix::process::{Pid, Signal, getuid, kill_process, kill_process_group};

/// How long a server may take from its start until it accepts a connection.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long a server may take to end by itself once it was told to.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// How many bytes of a log are shown at most, its last ones: what failed must be found among them.
const LOG_SHOWN: usize = 4096;
/// The account that Debian's web servers work as when root starts them.
const WEB_USER: &str = "www-data";

/// A child process and its children. It is told to stop, and if need be killed, when this value is dropped; when the
/// test is failing, its logs are printed.
pub struct Server {
    name: String,
    child: Child,
    pub logs: Vec<PathBuf>,
}

impl Server {
    /// Starts a command whose errors go to a file of the test's folder.
    ///
    /// `logs` are further files that the server writes.
    pub fn start(scratch: &Scratch, name: &str, mut command: Command, logs: &[&str]) -> Server {
        // The application panics in one of the tests; the symbols that a backtrace takes would count as its memory.
        command.env_remove("RUST_BACKTRACE");
        let stderr = scratch.path(&format!("{name}.stderr"));
        let file = fs::File::create(&stderr).expect("a file for the server's errors can be made");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a descriptor can be duplicated")).stderr(file);
        // A group of its own, so that what it leaves behind can be stopped as well.
        command.process_group(0);
        command.env_remove("GATEWAY_INTERFACE").env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("{name} ({:?}) did not start: {error}", command.get_program()),
        };
        let logs = logs.iter().map(|log| scratch.path(log)).chain([stderr]).collect();
        Server { name: name.to_owned(), child, logs }
    }

    /// Waits until `connects` succeeds.
    fn ready(mut self, what: &str, connects: impl Fn() -> bool) -> Server {
        let start = Instant::now();
        while !connects() {
            let ended = self.child.try_wait().expect("a child can be waited for");
            // One that ended well has left its work to another process.
            if ended.is_some_and(|status| !status.success()) || start.elapsed() > READY_WITHIN {
                panic!("{} does not accept connections on {what}; it ended: {ended:?}", self.name);
            }
            thread::sleep(Duration::from_millis(10));
        }
        self
    }

    /// Waits until the server accepts connections on a port.
    pub fn ready_on(self, address: SocketAddr) -> Server {
        self.ready(&address.to_string(), || TcpStream::connect(address).is_ok())
    }

    /// Waits until the server accepts connections on a Unix socket.
    pub fn ready_at(self, socket: &Path) -> Server {
        let text = socket.display().to_string();
        self.ready(&text, || UnixStream::connect(socket).is_ok())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        let ended = self.child.try_wait();
        let _ = match &ended {
            Ok(None) => kill_process(pid, Signal::TERM),
            // It ended before; only what it started can be left.
            _ => kill_process_group(pid, Signal::TERM),
        };
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < GONE_WITHIN {
            thread::sleep(Duration::from_millis(10));
        }
        // Whatever is left of the group: mostly nothing.
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = self.child.wait();
        if thread::panicking() {
            if let Ok(Some(status)) = ended {
                eprintln!("---- {} had ended by itself: {status}", self.name);
            }
            for log in &self.logs {
                let bytes = fs::read(log).unwrap_or_default();
                let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_SHOWN)..]);
                eprintln!("---- {} wrote to {}, {} bytes:\n{text}", self.name, log.display(), bytes.len());
            }
        }
    }
}

/// A folder for one front: configuration, sockets, logs, document root (`htdocs`), scripts (`cgi-bin`) and a folder that
/// the application may write to (`marks`). The web servers' workers may be another user, so all of it can be read by all.
pub struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    pub fn new() -> Scratch {
        let folder = tempfile::Builder::new().prefix("gatespan-").tempdir().expect("a folder can be made");
        let scratch = Scratch { folder };
        for (name, mode) in [("", 0o755), ("htdocs", 0o755), ("cgi-bin", 0o755), ("marks", 0o777)] {
            let path = scratch.path(name);
            fs::create_dir_all(&path).expect("a folder can be made");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a folder's mode can be set");
        }
        scratch.program("conformance", "cgi-bin/app");
        scratch
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).expect("a file can be written");
    }

    /// Puts one of the examples' binaries where the web servers' workers may run it: their way to the build folder can
    /// be barred.
    pub fn program(&self, example: &str, name: &str) -> PathBuf {
        let path = self.path(name);
        let binary = example_binary(example);
        if fs::hard_link(&binary, &path).is_err() {
            fs::copy(&binary, &path).expect("a binary can be copied");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a file's mode can be set");
        path
    }

    /// Builds the program in C of `fixtures/fastcgi`.
    pub fn libfcgi(&self) -> PathBuf {
        let path = self.path("libfcgi");
        let mut command = program("/usr/bin/gcc", "gcc");
        let header = Path::new("/usr/include/fcgiapp.h");
        assert!(header.exists(), "run tests/install, or as root: apt-get install libfcgi-dev");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/fastcgi/libfcgi.c");
        assert!(
            command.arg("-O1").arg("-o").arg(&path).arg(source).arg("-lfcgi").status().expect("it starts").success()
        );
        path
    }

    /// Makes a server's configuration from a file of `fixtures/servers`: `@NAME@` becomes the value of that name.
    pub fn configuration(&self, fixture: &str, values: &[(&str, &str)]) -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/servers").join(fixture);
        let mut text = fs::read_to_string(&source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        let folder = self.folder.path().display().to_string();
        let application = self.path("cgi-bin/app").display().to_string();
        let user = account();
        let usual = [
            ("DIR", folder.as_str()),
            ("APP", application.as_str()),
            ("USER", user.as_str()),
            ("WEB_USER", WEB_USER),
            ("MODULES", "/usr/lib/apache2/modules"),
        ];
        for (name, value) in values.iter().chain(&usual) {
            text = text.replace(&format!("@{name}@"), value);
        }
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
            assert!(
                !line.contains('@') || line.contains("unix@"),
                "{fixture} has a placeholder without a value: {line}"
            );
        }
        let path = self.path("server.conf");
        fs::write(&path, text).expect("a configuration can be written");
        path
    }

    /// Starts the application for a web server to connect to and returns it when it listens.
    pub fn application(&self, address: &Listening, settings: &[(&str, &str)]) -> Server {
        let mut command = Command::new(self.path("cgi-bin/app"));
        command.arg(address.argument()).envs(settings.iter().copied());
        let server = Server::start(self, "application", command, &[]);
        match address {
            Listening::Tcp(address) => server.ready_on(*address),
            Listening::Http(address) => server.ready_on(*address),
            Listening::Unix(path) => {
                let server = server.ready_at(path);
                // The socket is 0660, and Apache's workers are not root.
                if getuid().is_root() {
                    chown(path, None, Some(group(WEB_USER))).expect("a socket can be given to a group");
                }
                server
            }
        }
    }
}

/// Where the application listens.
pub enum Listening {
    Unix(PathBuf),
    Tcp(SocketAddr),
    Http(SocketAddr),
}

impl Listening {
    /// The application's command-line argument.
    fn argument(&self) -> String {
        match self {
            Listening::Unix(path) => format!("fastcgi:{}", path.display()),
            Listening::Tcp(address) => format!("fastcgi://{address}"),
            Listening::Http(address) => format!("http://{address}"),
        }
    }
}

/// A loopback address that nobody listens on. It lies below the ports that outgoing connections are given, so that none
/// of these can take it before the server does.
///
/// Nothing listens here to find out, not for a moment: the children that other tests fork just then would go on with it.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let start = 20_000 + (process::id() % 600) as u16 * 20;
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed) % 700;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .expect("a socket can be made");
        // As servers do: what else was bound like this and does not listen is in nobody's way.
        set_socket_reuseaddr(&socket, true).expect("an option of a socket can be set");
        match bind(&socket, &address) {
            Ok(()) => return address,
            Err(Errno::ADDRINUSE) => {}
            Err(error) => panic!("{address}: {error}"),
        }
    }
}

/// A program of a package that `tests/install` installs. A test whose peer is missing fails and says how to get it.
pub fn program(path: &str, package: &str) -> Command {
    assert!(
        Path::new(path).exists(),
        "{path} is missing: run tests/install, or as root: apt-get install --no-install-recommends {package}"
    );
    Command::new(path)
}

/// A key and a certificate of its own for a host, by name or address.
pub fn certificate(scratch: &Scratch, host: &str) -> (PathBuf, PathBuf) {
    let (key, certificate) = (scratch.path("key.pem"), scratch.path("certificate.pem"));
    let kind = if host.parse::<std::net::IpAddr>().is_ok() { "IP" } else { "DNS" };
    let made = program("/usr/bin/openssl", "openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"])
        .args(["-subj", &format!("/CN={host}"), "-addext", &format!("subjectAltName={kind}:{host}")])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (key, certificate)
}

/// The most memory that a process has had resident until now, in KiB.
pub fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is running");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel accounts for memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

/// The binary of an example, which cargo puts beside the tests' own folder.
fn example_binary(name: &str) -> PathBuf {
    let own = env::current_exe().expect("the test knows its own binary");
    let folder = own.ancestors().nth(2).expect("test binaries are in target/<profile>/deps");
    let path = folder.join("examples").join(name);
    assert!(path.exists(), "{} is missing: run cargo build --all-features --examples", path.display());
    path
}

/// The name of the account that runs the tests.
fn account() -> String {
    let id = getuid().as_raw().to_string();
    let accounts = fs::read_to_string("/etc/passwd").expect("the accounts can be read");
    let own = accounts.lines().find(|line| line.split(':').nth(2) == Some(&id)).expect("the own account is listed");
    own.split(':').next().unwrap_or_default().to_owned()
}

/// The number of a group.
fn group(name: &str) -> u32 {
    let groups = fs::read_to_string("/etc/group").expect("the groups can be read");
    let line = groups.lines().find(|line| line.split(':').next() == Some(name)).expect("Debian has this group");
    line.split(':').nth(2).and_then(|id| id.parse().ok()).expect("a group has a number")
}

/// Tells a reader of the output how long a step took.
pub fn note(front: &str, step: &str, start: Instant) {
    let _ = writeln!(std::io::stderr(), "{front}: {step}: {:.1?}", start.elapsed());
}
