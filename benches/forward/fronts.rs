//! The web servers that forward to FastCGI servers, each with its configuration, and the servers behind them.
//!
//! Each front forwards the same paths: `/closed` and `/kept` to the bare loop on connections of either kind, `/large` to one that answers with 1 MiB,
//! and the script for PHP on connections of either kind. Where a front keeps no connections it lacks the paths for that. None writes an access log.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gatespan::protocol::fastcgi::{EndRequest, ProtocolStatus, RecordType, RequestId, put_record};
use rustix::process::{Pid, Signal, kill_process_group};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{LARGE, PHP_PROCESSES, Result, peers};

/// A web server, or a setting of one that needs a process of its own.
pub(crate) struct Front {
    pub(crate) port: u16,
    process: Process,
}

/// What of a front is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// The bare loop on a new connection for each request.
    Closed,
    /// The bare loop on kept connections.
    Kept,
    /// 1 MiB from a bare loop, on kept connections where the front has such.
    Large,
    /// Uploads to the bare loop, on kept connections where the front has such.
    Upload,
    /// php-fpm on a new connection for each request.
    PhpClosed,
    /// php-fpm on kept connections.
    PhpKept,
}

/// One line of a table: a front, and the path that it forwards.
#[derive(Clone)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    /// Its place in [`Fronts::fronts`].
    pub(crate) front: usize,
    pub(crate) what: What,
    pub(crate) path: &'static str,
}

/// All of them with what they forward to.
pub(crate) struct Fronts {
    pub(crate) fronts: Vec<Front>,
    pub(crate) contenders: Vec<Contender>,
    /// Ended after the fronts.
    _behind: Vec<Process>,
}

/// Where the programs of the benchmark lie, and a folder that the servers' workers can get to.
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    pub(crate) tool: PathBuf,
    pub(crate) other_tool: Option<PathBuf>,
}

impl Place {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, content)?;
        Ok(path)
    }

    /// A bare FastCGI loop on a socket of that name, which answers every request with this.
    pub(crate) fn bare(&self, name: &str, answer: &[u8]) -> Result<Process> {
        let (file, path) = (self.path(&format!("{name}.answer")), self.path(name));
        fs::write(&file, wire(answer))?;
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        listener.bind(&SockAddr::unix(&path)?)?;
        listener.listen(1024)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--serve", "bare"]).arg(file).stdin(Stdio::from(OwnedFd::from(listener)));
        Process::start(name, command, || UnixStream::connect(&path).is_ok())
    }
}

/// An answer as it goes over the wire, for the request with the id 1, which all fronts use.
fn wire(answer: &[u8]) -> Vec<u8> {
    /// The longest content whose padded length fits a record.
    const LONGEST: usize = 65_528;
    let id = RequestId(1);
    let mut wire = Vec::new();
    for content in answer.chunks(LONGEST) {
        put_record(RecordType::Stdout, id, content, (content.len().wrapping_neg() & 7) as u8, &mut wire);
    }
    put_record(RecordType::Stdout, id, &[], 0, &mut wire);
    let end = EndRequest { application_status: 0, protocol_status: ProtocolStatus::RequestComplete };
    put_record(RecordType::EndRequest, id, &end.encode(), 0, &mut wire);
    wire
}

/// The tables that are wanted, for which servers are started.
pub(crate) struct Wanted {
    pub(crate) php: bool,
    pub(crate) large: bool,
}

impl Fronts {
    /// Starts them all.
    pub(crate) fn start(place: &Place, wanted: &Wanted, is_wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let mut behind = vec![place.bare("bare.sock", peers::HELLO)?];
        if wanted.large {
            behind.push(place.bare("large.sock", &[peers::LARGE_HEAD, &vec![b'x'; LARGE]].concat())?);
        }
        if wanted.php {
            behind.push(php_fpm(place)?);
        }
        let mut all = Self { fronts: Vec::new(), contenders: Vec::new(), _behind: behind };
        use What::{Closed, Kept, Large, PhpClosed, PhpKept, Upload};
        const COMMON: [(What, &str); 3] = [(Closed, "/closed"), (Large, "/large"), (Upload, "/upload")];
        const NGINX: &str = "nginx";
        type Of = fn(&Place, u16) -> Result<Command>;
        let others: [(_, Of, &[_]); 5] = [
            (NGINX, nginx, &[(Kept, "/kept"), (PhpClosed, "/hello.php"), (PhpKept, "/kept/hello.php")]),
            ("lighttpd", lighttpd, &[(PhpClosed, "/hello.php")]),
            ("h2o", h2o, &[(Kept, "/kept"), (PhpClosed, "/php/hello.php"), (PhpKept, "/kept-php/hello.php")]),
            ("Apache", apache, &[(Kept, "/kept"), (PhpClosed, "/hello.php"), (PhpKept, "/kept/hello.php")]),
            ("Caddy", caddy, &[(PhpClosed, "/hello.php")]),
        ];
        for (name, command, paths) in others {
            if is_wanted(name) {
                all.add(place, name, command, &[&COMMON, paths].concat())?;
            }
            if name == NGINX {
                let (name, front) = ("nginx, unbuffered", all.fronts.len() - 1);
                for (what, path) in [(Large, "/unbuffered"), (Upload, "/unbuffered-upload")] {
                    all.contenders.push(Contender { name, front, what, path });
                }
            }
        }
        let tools: [(_, _, _, &[_]); 3] = [
            ("Gatespan", Some(&place.tool), "php-gatespan.sock", &[]),
            ("Gatespan, one thread", Some(&place.tool), "php-single.sock", &["--threads", "1"]),
            ("Gatespan, other", place.other_tool.as_ref(), "php-other.sock", &[]),
        ];
        for (name, tool, kept_php, options) in tools {
            let Some(tool) = tool else { continue };
            // The path, and whether the bridge is one for a site, keeps connections, and to where.
            let paths: [(&[_], _, _, _); 5] = [
                (&[(Closed, "/closed")], false, "off", "bare.sock"),
                (&[(Kept, "/kept"), (Upload, "/upload")], false, "on", "bare.sock"),
                (&[(Large, "/large")], false, "on", "large.sock"),
                (&[(PhpClosed, "/hello.php")], true, "off", "php-closed.sock"),
                (&[(PhpKept, "/hello.php")], true, "on", kept_php),
            ];
            for (paths, is_site, keep, socket) in paths {
                if is_site && !wanted.php {
                    continue;
                }
                let command = |place: &Place, port| {
                    let mut command = Command::new(tool);
                    let socket = format!("fastcgi:{}", place.path(socket).display());
                    command.args(["bridge", &format!("http://127.0.0.1:{port}"), &socket, "--keep-alive", keep]);
                    command.args(options);
                    if is_site {
                        command.arg("--root").arg(place.path("site"));
                    }
                    Ok(command)
                };
                all.add(place, name, command, paths)?;
            }
        }
        all.contenders.retain(|contender| match contender.what {
            Large | Upload => wanted.large,
            PhpClosed | PhpKept => wanted.php,
            Closed | Kept => true,
        });
        Ok(all)
    }

    fn add(
        &mut self,
        place: &Place,
        name: &'static str,
        command: impl Fn(&Place, u16) -> Result<Command>,
        paths: &[(What, &'static str)],
    ) -> Result<()> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = command(place, port)?;
        command.stdin(Stdio::null()).stderr(fs::File::create(place.path(&format!("{name}.log")))?);
        let process = Process::start(name, command, || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        let front = self.fronts.len();
        self.fronts.push(Front { port, process });
        self.contenders.extend(paths.iter().map(|&(what, path)| Contender { name, front, what, path }));
        Ok(())
    }

    /// Those of one table.
    pub(crate) fn of(&self, what: What) -> Vec<Contender> {
        self.contenders.iter().filter(|contender| contender.what == what).cloned().collect()
    }
}

impl Front {
    /// The processor time of all its processes until now.
    pub(crate) fn spent(&self) -> Result<Duration> {
        let mut total = 0;
        for process in self.processes()? {
            for task in fs::read_dir(format!("/proc/{process}/task"))? {
                let text = fs::read_to_string(task?.path().join("schedstat"))?;
                total += text.split_whitespace().next().unwrap_or_default().parse::<u64>()?;
            }
        }
        Ok(Duration::from_nanos(total))
    }

    /// The numbers of its processes: those of its group.
    pub(crate) fn processes(&self) -> Result<Vec<u32>> {
        let group = self.process.0.id().to_string();
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Some(process) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // One that has ended since is none of them.
            let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { continue };
            // The name before it is in parentheses and may hold anything; then come the state, the parent and the group.
            if stat.rsplit(')').next().and_then(|fields| fields.split_whitespace().nth(2)) == Some(&group) {
                processes.push(process);
            }
        }
        Ok(processes)
    }
}

/// A running server with its workers, ended with this.
pub(crate) struct Process(Child);

impl Process {
    fn start(name: &str, mut command: Command, is_ready: impl Fn() -> bool) -> Result<Self> {
        let spawned = command.process_group(0).spawn();
        let mut process = Self(spawned.map_err(|error| format!("{name}: {error}"))?);
        let start = Instant::now();
        while !is_ready() {
            if start.elapsed() > Duration::from_secs(10) || process.0.try_wait()?.is_some() {
                return Err(format!("{name} did not start").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(process)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.0);
        let _ = kill_process_group(group, Signal::TERM);
        let start = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.0.wait();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn command(path: &str, package: &str) -> Result<Command> {
    match Path::new(path).exists() {
        true => Ok(Command::new(path)),
        false => Err(format!("{path} is missing: apt-get install {package}").into()),
    }
}

/// A pool of processes for each front that keeps its connections, which occupy the processes, and one for all that do not.
fn php_fpm(place: &Place) -> Result<Process> {
    let mut php = command("/usr/sbin/php-fpm8.2", "php8.2-fpm php8.2-opcache")?;
    if !Path::new("/etc/php/8.2/fpm/conf.d/10-opcache.ini").exists() {
        return Err("opcache is missing: apt-get install php8.2-opcache".into());
    }
    let folder = place.folder.display();
    let mut configuration = format!("[global]\nerror_log = {folder}/php.log\ndaemonize = no\n");
    for pool in ["closed", "nginx", "h2o", "apache", "gatespan", "single", "other"] {
        if pool == "other" && place.other_tool.is_none() {
            continue;
        }
        let user = if is_root() { "user = www-data\n" } else { "" };
        configuration.push_str(&format!(
            "[{pool}]\n{user}listen = {folder}/php-{pool}.sock\nlisten.mode = 0666\npm = static\npm.max_children = {PHP_PROCESSES}\n"
        ));
    }
    let file = place.write("php.conf", &configuration)?;
    fs::create_dir(place.path("site"))?;
    fs::create_dir(place.path("site/kept"))?;
    let script =
        "<?php\nheader('Content-Type: text/plain');\nheader('Content-Length: 14');\necho \"Hello, world!\\n\";\n";
    place.write("site/hello.php", script)?;
    place.write("site/kept/hello.php", script)?;
    php.arg("--nodaemonize").arg("--fpm-config").arg(file).stdin(Stdio::null());
    php.stderr(fs::File::create(place.path("php-fpm.log"))?);
    let socket = place.path("php-closed.sock");
    Process::start("php-fpm", php, || UnixStream::connect(&socket).is_ok())
}

fn nginx(place: &Place, port: u16) -> Result<Command> {
    let folder = place.folder.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {folder}/{kind};\n"));
    // As the documentation of fastcgi_keep_conn has it.
    let upstreams = [("bare", "bare"), ("large", "large"), ("php", "php-nginx")]
        .map(|(name, socket)| format!("  upstream {name} {{ server unix:{folder}/{socket}.sock; keepalive 32; }}\n"));
    let user = if is_root() { "user www-data;\n" } else { "" };
    let configuration = format!(
        "daemon off;\n{user}worker_processes 2;\npid {folder}/nginx.pid;\nerror_log stderr error;\nevents {{ worker_connections 1024; }}\nhttp {{\n  \
         access_log off;\n  keepalive_requests 100000000;\n  client_max_body_size 0;\n{}{}  server {{\n    listen 127.0.0.1:{port};\n    root {folder}/site;\n    \
         include /etc/nginx/fastcgi.conf;\n    \
         location = /closed {{ fastcgi_pass unix:{folder}/bare.sock; }}\n    \
         location = /kept {{ fastcgi_pass bare; fastcgi_keep_conn on; }}\n    \
         location = /large {{ fastcgi_pass large; fastcgi_keep_conn on; }}\n    \
         location = /unbuffered {{ fastcgi_pass large; fastcgi_keep_conn on; fastcgi_buffering off; fastcgi_request_buffering off; }}\n    \
         location = /upload {{ fastcgi_pass bare; fastcgi_keep_conn on; }}\n    \
         location = /unbuffered-upload {{ fastcgi_pass bare; fastcgi_keep_conn on; fastcgi_request_buffering off; }}\n    \
         location = /hello.php {{ fastcgi_pass unix:{folder}/php-closed.sock; }}\n    \
         location = /kept/hello.php {{ fastcgi_pass php; fastcgi_keep_conn on; }}\n  }}\n}}\n",
        temporary.concat(),
        upstreams.concat()
    );
    let file = place.write("nginx.conf", &configuration)?;
    let mut nginx = command("/usr/sbin/nginx", "nginx-light")?;
    nginx.arg("-c").arg(file).arg("-e").arg("stderr");
    Ok(nginx)
}

fn lighttpd(place: &Place, port: u16) -> Result<Command> {
    let folder = place.folder.display();
    let server = |path: &str, socket: &str| {
        format!("  \"{path}\" => ((\"socket\" => \"{folder}/{socket}.sock\", \"check-local\" => \"disable\")),\n")
    };
    let servers = [
        server("/closed", "bare"),
        server("/upload", "bare"),
        server("/large", "large"),
        server("/hello.php", "php-closed"),
    ];
    let user = if is_root() { "server.username = \"www-data\"\n" } else { "" };
    let configuration = format!(
        "server.modules = (\"mod_fastcgi\")\n{user}server.document-root = \"{folder}/site\"\nserver.bind = \"127.0.0.1\"\nserver.port = {port}\n\
         server.max-worker = 2\nserver.max-keep-alive-requests = 100000000\nserver.stream-response-body = 1\nserver.stream-request-body = 2\n\
         server.upload-dirs = (\"{folder}\")\nfastcgi.server = (\n{})\n",
        servers.concat()
    );
    let file = place.write("lighttpd.conf", &configuration)?;
    let mut lighttpd = command("/usr/sbin/lighttpd", "lighttpd")?;
    lighttpd.arg("-D").arg("-f").arg(file);
    Ok(lighttpd)
}

fn h2o(place: &Place, port: u16) -> Result<Command> {
    let folder = place.folder.display();
    let connect = |indent: &str, socket: &str| {
        format!("{indent}fastcgi.connect:\n{indent}  port: {folder}/{socket}.sock\n{indent}  type: unix\n")
    };
    let path = |path: &str, socket: &str, keep: bool| {
        let keep = if keep { "        fastcgi.timeout.keepalive: 10000\n" } else { "" };
        format!("      {path}:\n{}{keep}", connect("        ", socket))
    };
    let site = |path: &str, socket: &str, keep: bool| {
        let keep = if keep { "          fastcgi.timeout.keepalive: 10000\n" } else { "" };
        format!(
            "      {path}:\n        file.dir: {folder}/site\n        file.custom-handler:\n          extension: .php\n{}{keep}",
            connect("          ", socket)
        )
    };
    let paths = [
        path("/closed", "bare", false),
        path("/kept", "bare", true),
        path("/upload", "bare", true),
        path("/large", "large", true),
        site("/php", "php-closed", false),
        site("/kept-php", "php-h2o", true),
    ];
    let user = if is_root() { "user: www-data\n" } else { "" };
    let configuration = format!(
        "{user}num-threads: 2\nlisten:\n  host: 127.0.0.1\n  port: {port}\nhosts:\n  default:\n    paths:\n{}",
        paths.concat()
    );
    let file = place.write("h2o.conf", &configuration)?;
    let mut h2o = command("/usr/bin/h2o", "h2o")?;
    h2o.arg("-m").arg("worker").arg("-c").arg(file);
    Ok(h2o)
}

fn apache(place: &Place, port: u16) -> Result<Command> {
    let folder = place.folder.display();
    let modules = ["mpm_event", "authz_core", "setenvif", "proxy", "proxy_fcgi"]
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"));
    // The name behind the bar tells the pools of connections apart.
    let pass = |path: &str, socket: &str, file: &str, reuse: &str| {
        let name = path.replace(['/', '.'], "");
        format!("ProxyPass \"{path}\" \"unix:{folder}/{socket}.sock|fcgi://{name}{file}\" enablereuse={reuse}\n")
    };
    let script = format!("{folder}/site/hello.php");
    let passes = [
        pass("/closed", "bare", "/closed", "off"),
        pass("/kept/hello.php", "php-apache", &script, "on"),
        pass("/kept", "bare", "/kept", "on"),
        pass("/upload", "bare", "/upload", "on"),
        pass("/large", "large", "/large", "on"),
        pass("/hello.php", "php-closed", &script, "off"),
    ];
    let user = if is_root() { "User www-data\nGroup www-data\n" } else { "" };
    let configuration = format!(
        "ServerRoot {folder}\nServerName localhost\nListen 127.0.0.1:{port}\nPidFile {folder}/apache.pid\nDefaultRuntimeDir {folder}\n\
         ErrorLog {folder}/apache.log\n{user}Mutex pthread\n{}ServerLimit 2\nStartServers 2\nThreadLimit 64\nThreadsPerChild 64\nMaxRequestWorkers 128\n\
         MinSpareThreads 1\nMaxSpareThreads 128\nMaxKeepAliveRequests 0\nLimitRequestBody 0\nSetEnvIf Request_URI . ap_trust_cgilike_cl=1\n{}",
        modules.concat(),
        passes.concat()
    );
    let file = place.write("apache.conf", &configuration)?;
    let mut apache = command("/usr/sbin/apache2", "apache2")?;
    apache.arg("-f").arg(file).arg("-DFOREGROUND");
    Ok(apache)
}

fn caddy(place: &Place, port: u16) -> Result<Command> {
    let folder = place.folder.display();
    let proxy = |path: &str, socket: &str| {
        format!(
            "  reverse_proxy {path} unix/{folder}/{socket}.sock {{\n    transport fastcgi {{\n      split .php\n    }}\n  }}\n"
        )
    };
    let proxies = [
        proxy("/closed", "bare"),
        proxy("/upload", "bare"),
        proxy("/large", "large"),
        proxy("/hello.php", "php-closed"),
    ];
    let configuration = format!(
        "{{\n  admin off\n  auto_https off\n}}\n:{port} {{\n  bind 127.0.0.1\n  root * {folder}/site\n{}}}\n",
        proxies.concat()
    );
    let file = place.write("Caddyfile", &configuration)?;
    let mut caddy = command("/usr/bin/caddy", "caddy")?;
    caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
    // It keeps what it was configured with in the home folder.
    caddy.env("HOME", &place.folder).env("XDG_CONFIG_HOME", &place.folder).env("XDG_DATA_HOME", &place.folder);
    Ok(caddy)
}

/// The folder in which everything happens, for all users, and the tool beside this binary.
pub(crate) fn prepare(folder: &Path, other_tool: Option<PathBuf>) -> Result<Place> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    let myself = std::env::current_exe()?;
    let tool = myself.ancestors().nth(2).unwrap_or(Path::new(".")).join("gatespan");
    match tool.exists() {
        true => Ok(Place { folder: folder.to_owned(), tool, other_tool }),
        false => {
            let hint = "cargo build --release --all-features --bin gatespan";
            Err(io::Error::other(format!("{}: expected the program there: {hint}", tool.display())).into())
        }
    }
}
