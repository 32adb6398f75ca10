//! CGI programs behind real servers, side by side: `gatespan bridge` and fcgiwrap behind the same nginx, lighttpd's mod_cgi, Apache's
//! mod_cgid, and `gatespan bridge` as the web server.
//!
//! `cargo build --release --all-features --bin gatespan`, and then `cargo bench --bench cgi_servers`. `--rounds N` and `--seconds N` after `--` say how
//! often and how long, `--only NAME` which, beside those behind nginx. All processes share the machine. The servers take turns, since a shared machine is
//! faster at one time than at another: compare figures of one table only. What is missing on the machine is an error that says how to get it.

#[path = "servers/load.rs"]
#[allow(dead_code, reason = "this benchmark uses a part of it")]
mod load;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use load::Extent;
use rustix::event::Timespec;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How many clients there are at once.
const CONNECTIONS: usize = 32;

/// What the programs' answer ends with.
const END: &[u8] = b"Hello, world!\n";

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A server, or what runs scripts for nginx, and where it answers.
struct Contender {
    name: &'static str,
    port: u16,
    prefix: &'static str,
}

fn measure() -> Result<()> {
    let (mut rounds, mut seconds, mut only) = (7_usize, 1.0_f64, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("expected a value after {argument}"));
        match argument.as_str() {
            "--rounds" => rounds = value()?.parse()?,
            "--seconds" => seconds = value()?.parse()?,
            "--only" => only = Some(value()?),
            // What cargo adds by itself.
            "--bench" => {}
            other => return Err(format!("expected --rounds, --seconds or --only, got {other}").into()),
        }
    }
    let place = Place::prepare()?;
    let (servers, contenders) = place.start()?;
    let contenders: Vec<Contender> = contenders
        .into_iter()
        .filter(|contender| {
            !contender.prefix.is_empty() || only.as_deref().is_none_or(|only| contender.name.contains(only))
        })
        .collect();
    println!("CGI programs through servers, {CONNECTIONS} clients, {rounds} rounds of {seconds} s.");
    println!("Ratios are medians of those of each round: to fcgiwrap -c 2 and to fcgiwrap -c 8.");
    for (what, program) in [("static C", "static.cgi"), ("no libc", "bare.cgi")] {
        let mut samples: Vec<Vec<f64>> = Vec::new();
        for _ in 0..rounds {
            let round = contenders.iter().map(|contender| {
                let extent = Extent {
                    connections: CONNECTIONS,
                    time: Duration::from_secs_f64(seconds),
                    requests: usize::MAX,
                    sleep: Timespec { tv_sec: 1, tv_nsec: 0 },
                };
                let target = format!("{}/cgi-bin/{program}", contender.prefix);
                let (count, time) = load::http(contender.port, &target, END, extent)
                    .map_err(|error| format!("{}: {error}", contender.name))?;
                Ok(count as f64 / time.as_secs_f64())
            });
            samples.push(round.collect::<Result<_>>()?);
        }
        println!("\n{what:<28} {:>10} {:>7} {:>7}", "requests/s", "x -c 2", "x -c 8");
        for (index, contender) in contenders.iter().enumerate() {
            let rate = median(samples.iter().map(|round| round[index]));
            let ratio = |to: usize| median(samples.iter().map(|round| round[index] / round[to]));
            println!("{:<28} {rate:>10.0} {:>7.2} {:>7.2}", contender.name, ratio(1), ratio(2));
        }
    }
    println!("\nFrom an event's writing to its arrival, ms; 50 events, 10 ms apart, five times in turn.");
    println!("{:<28} {:>8} {:>8} {:>8}", "", "median", "95 %", "most");
    let mut delays: Vec<Vec<f64>> = contenders.iter().map(|_| Vec::new()).collect();
    for _ in 0..5 {
        for (contender, delays) in contenders.iter().zip(&mut delays) {
            delays.extend(events(contender).map_err(|error| format!("{}: {error}", contender.name))?);
        }
    }
    for (contender, mut delays) in contenders.iter().zip(delays) {
        delays.sort_by(f64::total_cmp);
        let at = |part: f64| delays[((delays.len() - 1) as f64 * part) as usize];
        println!("{:<28} {:>8.2} {:>8.2} {:>8.2}", contender.name, at(0.5), at(0.95), at(1.0));
    }
    drop(servers);
    Ok(())
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// How long each event took, in milliseconds.
fn events(contender: &Contender) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(("127.0.0.1", contender.port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let target = format!("{}/cgi-bin/events.cgi", contender.prefix);
    write!(stream, "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut delays = Vec::new();
    for line in BufReader::new(stream).split(b'\n') {
        let line = line?;
        // The only lines of so many digits.
        if let Some(written) = std::str::from_utf8(&line).ok().filter(|line| line.len() == 19) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            if let Ok(written) = written.parse::<u64>() {
                delays.push((now.as_nanos() as f64 - written as f64) / 1e6);
            }
        }
    }
    match delays.len() {
        50 => Ok(delays),
        other => Err(format!("expected 50 events, got {other}").into()),
    }
}

/// The programs, in a folder that the servers' workers can get to.
struct Place {
    folder: tempfile::TempDir,
    tool: PathBuf,
}

impl Place {
    fn prepare() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let place = Self { folder, tool: tool()? };
        for name in ["", "cgi-bin"] {
            fs::create_dir_all(place.path(name))?;
            fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o755))?;
        }
        for (source, name, options) in [
            ("hello", "static.cgi", &["-static"][..]),
            ("hello_nolibc", "bare.cgi", &["-static", "-nostdlib"]),
            ("events", "events.cgi", &["-static"]),
        ] {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(source).with_extension("c");
            let program = place.path("cgi-bin").join(name);
            let mut gcc = Command::new("gcc");
            let status = gcc.arg("-O2").arg("-o").arg(&program).arg(&source).args(options).status();
            if !status.map_err(|error| format!("gcc: {error}: apt-get install gcc libc6-dev"))?.success() {
                return Err(format!("gcc could not compile {}", source.display()).into());
            }
        }
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// All of them. The first three are ours and fcgiwrap's, behind one nginx.
    fn start(&self) -> Result<(Vec<Server>, Vec<Contender>)> {
        let folder = self.folder.path().display().to_string();
        let scripts = format!("cgi:{folder}/cgi-bin/");
        let mut servers = Vec::new();
        let mut bridge = Command::new(&self.tool);
        bridge.args(["bridge", &format!("fastcgi:{folder}/gatespan.sock"), &scripts, "--socket-mode", "666"]);
        servers.push(Server::start("gatespan", bridge, &self.path("gatespan.sock"))?);
        for processes in ["2", "8"] {
            let socket = self.path(&format!("fcgiwrap{processes}.sock"));
            let mut fcgiwrap = command("/usr/sbin/fcgiwrap", "fcgiwrap")?;
            fcgiwrap.args(["-c", processes, "-s", &format!("unix:{}", socket.display())]);
            servers.push(Server::start("fcgiwrap", fcgiwrap, &socket)?);
            fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
        }
        let [nginx_port, lighttpd_port, apache_port, http_port] = [(); 4].map(|()| free_port());
        let (nginx_port, lighttpd_port, apache_port, http_port) =
            (nginx_port?, lighttpd_port?, apache_port?, http_port?);

        let locations = ["gatespan", "fcgiwrap2", "fcgiwrap8"].map(|name| {
            format!(
                "    location /{name}/ {{ fastcgi_pass unix:{folder}/{name}.sock; fastcgi_buffering off; include /etc/nginx/fastcgi_params;\n      \
                 fastcgi_split_path_info ^(/{name})(/.*)$; fastcgi_param SCRIPT_FILENAME {folder}$fastcgi_path_info; \
                 fastcgi_param SCRIPT_NAME $fastcgi_path_info; fastcgi_param NO_BUFFERING 1; }}\n"
            )
        });
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("  {kind}_temp_path {folder}/{kind};\n"));
        let configuration = format!(
            "daemon off;\nworker_processes 2;\npid {folder}/nginx.pid;\nerror_log stderr error;\nevents {{ worker_connections 1024; }}\nhttp {{\n  \
             access_log off;\n  keepalive_requests 100000000;\n{}  server {{\n    listen 127.0.0.1:{nginx_port};\n{}  }}\n}}\n",
            temporary.concat(),
            locations.concat()
        );
        let file = self.write("nginx.conf", &configuration)?;
        let mut nginx = command("/usr/sbin/nginx", "nginx-light")?;
        nginx.arg("-c").arg(file).arg("-e").arg("stderr");
        servers.push(Server::on("nginx", nginx, nginx_port)?);

        let configuration = format!(
            "server.modules = (\"mod_cgi\")\nserver.document-root = \"{folder}\"\nserver.bind = \"127.0.0.1\"\nserver.port = {lighttpd_port}\n\
             server.max-worker = 2\nserver.max-keep-alive-requests = 100000000\nserver.stream-response-body = 2\nserver.upload-dirs = (\"{folder}\")\n\
             cgi.assign = (\".cgi\" => \"\")\n"
        );
        let file = self.write("lighttpd.conf", &configuration)?;
        let mut lighttpd = command("/usr/sbin/lighttpd", "lighttpd")?;
        lighttpd.arg("-D").arg("-f").arg(file);
        servers.push(Server::on("lighttpd", lighttpd, lighttpd_port)?);

        // More threads in each process than there are clients: where all are busy, its connections that wait for a request are closed.
        let modules = ["mpm_event", "authz_core", "alias", "setenvif", "cgid"]
            .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"));
        let configuration = format!(
            "ServerRoot {folder}\nServerName localhost\nListen 127.0.0.1:{apache_port}\nPidFile {folder}/apache.pid\nDefaultRuntimeDir {folder}\n\
             ThreadLimit 64\nThreadsPerChild 64\nStartServers 2\nMaxRequestWorkers 128\n\
             ErrorLog {folder}/apache.log\nUser www-data\nGroup www-data\nMutex pthread\n{}MaxKeepAliveRequests 0\nScriptSock {folder}/cgid.sock\n\
             SetEnvIf Request_URI . ap_trust_cgilike_cl=1\n\
             ScriptAlias /cgi-bin/ {folder}/cgi-bin/\n<Directory {folder}/cgi-bin>\n  Require all granted\n</Directory>\n",
            modules.concat()
        );
        let file = self.write("apache.conf", &configuration)?;
        let mut apache = command("/usr/sbin/apache2", "apache2")?;
        apache.arg("-f").arg(file).arg("-DFOREGROUND");
        servers.push(Server::on("apache", apache, apache_port)?);

        let mut http = Command::new(&self.tool);
        http.args(["bridge", &format!("http://127.0.0.1:{http_port}"), "app:hello", "--route"]);
        http.arg(format!("/cgi-bin={scripts}"));
        servers.push(Server::on("gatespan http", http, http_port)?);

        let contender = |name, port, prefix| Contender { name, port, prefix };
        let contenders = vec![
            contender("nginx + gatespan", nginx_port, "/gatespan"),
            contender("nginx + fcgiwrap -c 2", nginx_port, "/fcgiwrap2"),
            contender("nginx + fcgiwrap -c 8", nginx_port, "/fcgiwrap8"),
            contender("lighttpd mod_cgi, 2 workers", lighttpd_port, ""),
            contender("Apache mod_cgid", apache_port, ""),
            contender("gatespan as web server", http_port, ""),
        ];
        Ok((servers, contenders))
    }

    fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, content)?;
        Ok(path)
    }
}

/// The tool, beside the folder of this binary.
fn tool() -> Result<PathBuf> {
    let myself = std::env::current_exe()?;
    let path = myself.ancestors().nth(2).unwrap_or(Path::new(".")).join("gatespan");
    match path.exists() {
        true => Ok(path),
        false => Err(format!(
            "{}: expected the program there: cargo build --release --all-features --bin gatespan",
            path.display()
        )
        .into()),
    }
}

fn command(path: &str, package: &str) -> Result<Command> {
    match Path::new(path).exists() {
        true => Ok(Command::new(path)),
        false => Err(format!("{path} is missing: apt-get install {package}").into()),
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A running server, ended with this.
struct Server {
    process: Child,
}

impl Server {
    fn start(name: &str, command: Command, socket: &Path) -> Result<Self> {
        Self::ready(name, command, || UnixStream::connect(socket).is_ok())
    }

    fn on(name: &str, command: Command, port: u16) -> Result<Self> {
        Self::ready(name, command, || TcpStream::connect(("127.0.0.1", port)).is_ok())
    }

    fn ready(name: &str, mut command: Command, is_ready: impl Fn() -> bool) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        // A group of its own, so that its workers end with it.
        let process = command.process_group(0).stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut server = Self { process };
        let start = Instant::now();
        while !is_ready() {
            if start.elapsed() > Duration::from_secs(10) || server.process.try_wait()?.is_some() {
                return Err(format!("{name} did not start").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::TERM);
        let start = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.process.wait();
    }
}
