//! Servers side by side: ours, a bare tokio loop that answers with the same bytes without understanding anything, the C library's
//! threads and the tokio-fastcgi crate.
//!
//! `cargo bench --bench servers` measures everything; `--direct`, `--syscalls`, `--nginx`, `--large` and `--cgi` after `--` choose, `--rounds N` and
//! `--seconds N` say how often and how long, `--only NAME` limits the FastCGI servers to the bare loop and that one. What is missing on the machine is an error
//! that says how to get it; `--beside PROGRAM` measures another build of the example `hello` too. The servers take turns, since a shared machine is faster at one time than at another: compare figures of one table only.

#[path = "servers/load.rs"]
#[allow(dead_code, reason = "this benchmark uses a part of it")]
mod load;
#[path = "servers/peers.rs"]
mod peers;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use load::Extent;
use rustix::event::Timespec;
use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, SockAddr, Socket, Type};

/// How many connections are open at once.
const CONNECTIONS: usize = 32;

/// How long an upload is.
const UPLOAD: usize = 10 * 1024 * 1024;

/// For clients that share their processor with others.
const UP_TO_A_SECOND: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// For clients on a processor of their own.
const NEVER: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

const MIB: f64 = 1024.0 * 1024.0;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some("--serve") = arguments.first().map(String::as_str) {
        let name = arguments.get(1).map(String::as_str).unwrap_or_default();
        return peers::serve(name, arguments.get(2).map(String::as_str));
    }
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &[String]) -> Result<()> {
    let mut plan = Plan { rounds: 5, seconds: 1.0, only: None, beside: None, chosen: Vec::new() };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("expected a value after {argument}"));
        match argument.as_str() {
            "--rounds" => plan.rounds = value()?.parse()?,
            "--seconds" => plan.seconds = value()?.parse()?,
            "--beside" => plan.beside = Some(value()?.into()),
            "--only" => plan.only = Some(value()?.clone()),
            "--direct" | "--syscalls" | "--nginx" | "--large" | "--cgi" => plan.chosen.push(argument.clone()),
            // What cargo adds by itself.
            "--bench" => {}
            other => {
                return Err(format!(
                    "expected --direct, --syscalls, --nginx, --large, --cgi, --rounds, --seconds, --only or --beside, got {other}"
                )
                .into());
            }
        }
    }
    if plan.rounds == 0 {
        return Err("expected at least one round".into());
    }
    if std::thread::available_parallelism()?.get() < 2 {
        return Err("two processors are needed, one for the server and one for the clients".into());
    }
    let place = Place::prepare(&plan)?;
    for (name, table) in [
        ("--direct", direct as fn(&Plan, &Place) -> Result<()>),
        ("--syscalls", syscalls),
        ("--nginx", nginx),
        ("--large", large),
        ("--cgi", cgi),
    ] {
        if plan.chosen.is_empty() || plan.chosen.iter().any(|chosen| chosen == name) {
            table(&plan, &place)?;
            println!();
        }
    }
    Ok(())
}

/// What was asked for.
struct Plan {
    rounds: usize,
    seconds: f64,
    only: Option<String>,
    beside: Option<PathBuf>,
    chosen: Vec<String>,
}

impl Plan {
    fn extent(&self, connections: usize, sleep: Timespec) -> Extent {
        Extent { connections, time: Duration::from_secs_f64(self.seconds), requests: usize::MAX, sleep }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| name == "bare" || name == "gatespan" || name == only)
    }
}

/// The programs, and a folder for sockets and files.
struct Place {
    folder: tempfile::TempDir,
    myself: PathBuf,
    hello: PathBuf,
    empty_tokio: PathBuf,
    libfcgi: PathBuf,
    hello_c: PathBuf,
}

impl Place {
    fn prepare(plan: &Plan) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        // nginx's workers have to get to the sockets.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let myself = std::env::current_exe()?;
        let examples = myself.ancestors().nth(2).unwrap_or(Path::new(".")).join("examples");
        let example = |name: &str| {
            let path = examples.join(name);
            match path.exists() {
                true => Ok(path),
                false => Err(format!(
                    "{}: expected the program there: cargo build --release --example {name}",
                    path.display()
                )),
            }
        };
        let compile = |name: &str, library: &[&str]| -> Result<PathBuf> {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(name).with_extension("c");
            let program = folder.path().join(name).with_extension("c.out");
            let mut gcc = Command::new("gcc");
            gcc.arg("-O2").arg("-o").arg(&program).arg(&source).args(library);
            let status = gcc.status().map_err(|error| format!("gcc: {error}: apt-get install gcc libc6-dev"))?;
            if !status.success() {
                return Err(format!(
                    "gcc could not compile {}: apt-get install gcc libc6-dev libfcgi-dev",
                    source.display()
                )
                .into());
            }
            Ok(program)
        };
        require("taskset", "util-linux")?;
        let all = plan.chosen.is_empty();
        if all || plan.chosen.iter().any(|chosen| chosen == "--syscalls") {
            require("strace", "strace")?;
        }
        if all || plan.chosen.iter().any(|chosen| chosen == "--nginx") {
            require("nginx", "nginx")?;
        }
        Ok(Self {
            myself,
            hello: example("hello")?,
            empty_tokio: example("empty_tokio")?,
            libfcgi: compile("libfcgi", &["-lfcgi", "-lpthread"])?,
            hello_c: compile("hello", &[])?,
            folder,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What our server sends for a request, in a file for the bare loop.
    fn capture(&self, server: &Server, request: &[u8], content: &[u8]) -> Result<PathBuf> {
        let answer = load::answer(&server.socket, request)?;
        if !answer.windows(content.len()).any(|window| window == content) {
            return Err(format!("{}: expected another answer than it gave", server.name).into());
        }
        let file = self.path(&format!("{}.answer", server.name));
        fs::write(&file, answer)?;
        Ok(file)
    }

    /// Our server and the others, which answer with what it answers with.
    fn servers(&self, plan: &Plan, cores: &str) -> Result<Vec<Server>> {
        let ours = self.start("gatespan", cores, Command::new(&self.hello))?;
        let answer = self.capture(&ours, &load::request("GET", 0, true), peers::HELLO)?;
        let mut servers = vec![self.start("bare", cores, self.peer("bare", &[path(&answer)]))?, ours];
        if let Some(beside) = &plan.beside {
            servers.push(self.start("gatespan-other", cores, Command::new(beside))?);
        }
        if plan.wants("libfcgi") {
            servers.push(self.start("libfcgi", cores, Command::new(&self.libfcgi))?);
        }
        if plan.wants("tokio-fastcgi") {
            servers.push(self.start("tokio-fastcgi", cores, self.peer("tokio-fastcgi", &[]))?);
        }
        Ok(servers)
    }

    fn peer(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.myself);
        command.arg("--serve").arg(name).args(arguments);
        command
    }

    /// Starts a server on a socket of its own, which is its descriptor 0.
    fn start(&self, name: &'static str, cores: &str, program: Command) -> Result<Server> {
        let socket = self.path(&format!("{}.socket", next_number()));
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        listener.bind(&SockAddr::unix(&socket)?)?;
        listener.listen(1024)?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
        let mut command = Command::new("taskset");
        command.args(["-c", cores]).arg(program.get_program()).args(program.get_args());
        let process = command.stdin(Stdio::from(OwnedFd::from(listener))).spawn()?;
        let server = Server { name, socket, process };
        // It is there when it answers.
        load::answer(&server.socket, &load::request("GET", 0, true)).map_err(|error| format!("{name}: {error}"))?;
        Ok(server)
    }
}

/// A number that no other socket of this process has.
fn next_number() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn require(program: &str, package: &str) -> Result<()> {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .chain([PathBuf::from("/usr/sbin")])
        .any(|folder| folder.join(program).exists());
    match found {
        true => Ok(()),
        false => Err(format!("{program} is missing: apt-get install {package}").into()),
    }
}

/// A running server, ended with this.
struct Server {
    name: &'static str,
    socket: PathBuf,
    process: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Killed outright nginx would leave its workers behind. It may have ended by itself.
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let start = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Processor time of a process with its threads.
#[derive(Clone, Copy)]
struct Spent {
    total: Duration,
    /// In the ticks in which the system tells the two apart.
    user: u64,
    system: u64,
}

impl Server {
    fn spent(&self) -> Result<Spent> {
        let folder = PathBuf::from(format!("/proc/{}", self.process.id()));
        let mut total = 0;
        for task in fs::read_dir(folder.join("task"))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            total += text.split_whitespace().next().unwrap_or_default().parse::<u64>()?;
        }
        let stat = fs::read_to_string(folder.join("stat"))?;
        // The name before it is in parentheses and may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let tick = |place: usize| fields.get(place).copied().unwrap_or_default().parse::<u64>();
        Ok(Spent { total: Duration::from_nanos(total), user: tick(11)?, system: tick(12)? })
    }

    fn observe(&self, load: impl FnOnce(&Path) -> io::Result<(usize, Duration)>) -> Result<Sample> {
        let before = self.spent()?;
        let (count, time) = load(&self.socket).map_err(|error| format!("{}: {error}", self.name))?;
        let after = self.spent()?;
        let (user, system) = (after.user - before.user, after.system - before.system);
        Ok(Sample {
            rate: count as f64 / time.as_secs_f64(),
            cpu: (after.total - before.total).as_secs_f64() * 1e6 / count as f64,
            user_part: user as f64 / (user + system).max(1) as f64,
        })
    }
}

/// One run of one server.
#[derive(Clone, Copy, Default)]
struct Sample {
    /// Requests a second.
    rate: f64,
    /// Microseconds of processor time a request.
    cpu: f64,
    user_part: f64,
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of something, and of its ratio to that of the first server in the same round.
fn beside(samples: &[Vec<Sample>], server: usize, value: impl Fn(&Sample) -> f64) -> (f64, f64) {
    let ratios = samples.iter().map(|round| value(&round[server]) / value(&round[0]));
    (median(samples.iter().map(|round| value(&round[server]))), median(ratios))
}

/// Each server in turn, as many rounds as planned.
fn rounds(
    plan: &Plan,
    servers: &[Server],
    load: impl Fn(&Path) -> io::Result<(usize, Duration)>,
) -> Result<Vec<Vec<Sample>>> {
    (0..plan.rounds).map(|_| servers.iter().map(|server| server.observe(&load)).collect()).collect()
}

/// Leaves the processor of the server to the server.
fn run_on(cores: &str) -> Result<()> {
    let status = Command::new("taskset")
        .args(["-a", "-c", "-p", cores, &std::process::id().to_string()])
        .stdout(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(format!("taskset could not choose the processors {cores}").into());
    }
    Ok(())
}

type Load = fn(&Path, &[u8], Extent) -> io::Result<(usize, Duration)>;

/// A web server's requests on a Unix socket, the server on one processor, the clients on the other.
fn direct(plan: &Plan, place: &Place) -> Result<()> {
    run_on("1")?;
    let servers = place.servers(plan, "0")?;
    let (kept_request, closed_request) = (load::request("GET", 0, true), load::request("GET", 0, false));
    let observe = |load: Load, request: &[u8], sleep| {
        rounds(plan, &servers, |path| load(path, request, plan.extent(CONNECTIONS, sleep)))
    };
    let tables = [
        ("kept", observe(load::kept, &kept_request, NEVER)?),
        ("closed each time", observe(load::closed, &closed_request, NEVER)?),
        ("kept, sleepy", observe(load::kept, &kept_request, UP_TO_A_SECOND)?),
        ("closed, sleepy", observe(load::closed, &closed_request, UP_TO_A_SECOND)?),
    ];
    println!(
        "FastCGI, 25 variables, {CONNECTIONS} connections, Unix socket; the server on one processor. CPU is the server's, in µs a request."
    );
    for (name, samples) in tables {
        println!("\n{name:<20} {:>10} {:>7} {:>8} {:>7}   user + system", "requests/s", "x bare", "CPU µs", "x bare");
        for (index, server) in servers.iter().enumerate() {
            let (rate, rate_ratio) = beside(&samples, index, |sample| sample.rate);
            let (cpu, cpu_ratio) = beside(&samples, index, |sample| sample.cpu);
            let user = cpu * median(samples.iter().map(|round| round[index].user_part));
            println!(
                "{:<20} {rate:>10.0} {rate_ratio:>7.2} {cpu:>8.2} {cpu_ratio:>7.2}   {user:.2} + {:.2}",
                server.name,
                cpu - user
            );
        }
    }
    run_on("0,1")
}

/// System calls a request, counted by strace while a server runs.
fn syscalls(plan: &Plan, place: &Place) -> Result<()> {
    const REQUESTS: usize = 8_000;
    let extent =
        Extent { connections: CONNECTIONS, time: Duration::from_secs(60), requests: REQUESTS, sleep: UP_TO_A_SECOND };
    let servers = place.servers(plan, "0")?;
    println!(
        "System calls a request, {REQUESTS} requests, {CONNECTIONS} connections. Under strace a server is so slow that every wait finds all connections ready."
    );
    for (name, keep) in [("kept", true), ("closed each time", false)] {
        let request = load::request("GET", 0, keep);
        println!("\n{name}");
        for server in &servers {
            let output = place.path("strace");
            let mut strace = Command::new("strace")
                .args(["-c", "-f", "-q", "-o", path(&output), "-p", &server.process.id().to_string()])
                .stderr(Stdio::null())
                .spawn()?;
            wait_for_tracer(server)?;
            let (count, _) = match keep {
                true => load::kept(&server.socket, &request, extent)?,
                false => load::closed(&server.socket, &request, extent)?,
            };
            // Its end is when it prints.
            Command::new("kill").args(["-INT", &strace.id().to_string()]).status()?;
            strace.wait()?;
            let calls = parse_strace(&fs::read_to_string(&output)?);
            let total: u64 = calls.values().sum();
            let mut calls: Vec<_> = calls.into_iter().collect();
            calls.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let list = calls.iter().map(|(name, calls)| (name, *calls as f64 / count as f64));
            let list: Vec<_> =
                list.filter(|(_, calls)| *calls >= 0.005).map(|(name, calls)| format!("{name} {calls:.2}")).collect();
            println!("{:<20} {:>6.2}   {}", server.name, total as f64 / count as f64, list.join(", "));
        }
    }
    Ok(())
}

fn wait_for_tracer(server: &Server) -> Result<()> {
    let status = format!("/proc/{}/status", server.process.id());
    let start = Instant::now();
    while fs::read_to_string(&status)?.lines().any(|line| line == "TracerPid:\t0") {
        if start.elapsed() > Duration::from_secs(5) {
            return Err("strace could not trace the server".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // The other threads follow.
    std::thread::sleep(Duration::from_millis(300));
    Ok(())
}

/// `% time, seconds, usecs/call, calls, [errors,] syscall`, between lines of dashes.
fn parse_strace(table: &str) -> BTreeMap<String, u64> {
    let rows =
        table.lines().skip_while(|line| !line.starts_with("---")).skip(1).take_while(|line| !line.starts_with("---"));
    rows.filter_map(|row| {
        let fields: Vec<&str> = row.split_whitespace().collect();
        Some((fields.last()?.to_string(), fields.get(3)?.parse().ok()?))
    })
    .collect()
}

/// Behind nginx, where all processes share the machine.
fn nginx(plan: &Plan, place: &Place) -> Result<()> {
    let cores = "0,1";
    let mut servers = place.servers(plan, cores)?;
    servers.push(place.start("gatespan-one-thread", cores, place.peer("gatespan-one-thread", &[]))?);
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let _nginx = start_nginx(place, &servers, port)?;
    println!(
        "Behind nginx on the same two processors, {CONNECTIONS} clients. CPU is the FastCGI server's, in µs a request."
    );
    for name in ["kept", "closed"] {
        let mut samples = Vec::new();
        for _ in 0..plan.rounds {
            let of = |server: &Server| {
                let target = format!("/{name}/{}", server.name);
                server.observe(|_| {
                    load::http(port, &target, b"\r\n\r\nHello, world!\n", plan.extent(CONNECTIONS, UP_TO_A_SECOND))
                })
            };
            samples.push(servers.iter().map(of).collect::<Result<Vec<_>>>()?);
        }
        println!("\n{name:<20} {:>10} {:>7} {:>8} {:>7}", "requests/s", "x bare", "CPU µs", "x bare");
        for (index, server) in servers.iter().enumerate() {
            let (rate, rate_ratio) = beside(&samples, index, |sample| sample.rate);
            let (cpu, cpu_ratio) = beside(&samples, index, |sample| sample.cpu);
            println!("{:<20} {rate:>10.0} {rate_ratio:>7.2} {cpu:>8.2} {cpu_ratio:>7.2}", server.name);
        }
    }
    Ok(())
}

fn start_nginx(place: &Place, servers: &[Server], port: u16) -> Result<Server> {
    let folder = place.folder.path().display();
    let mut params = String::new();
    for name in [
        "QUERY_STRING",
        "REQUEST_METHOD",
        "CONTENT_TYPE",
        "CONTENT_LENGTH",
        "REQUEST_URI",
        "DOCUMENT_URI",
        "DOCUMENT_ROOT",
        "SERVER_PROTOCOL",
        "REMOTE_ADDR",
        "REMOTE_PORT",
        "SERVER_ADDR",
        "SERVER_PORT",
        "SERVER_NAME",
    ] {
        params.push_str(&format!("    fastcgi_param {name} ${};\n", name.to_lowercase()));
    }
    params.push_str(
        "    fastcgi_param SCRIPT_NAME \"\";\n    fastcgi_param PATH_INFO $fastcgi_script_name;\n    fastcgi_param REQUEST_SCHEME $scheme;\n    \
         fastcgi_param GATEWAY_INTERFACE CGI/1.1;\n    fastcgi_param SERVER_SOFTWARE nginx/$nginx_version;\n    fastcgi_param REDIRECT_STATUS 200;\n",
    );
    let (mut upstreams, mut locations) = (String::new(), String::new());
    for Server { name, socket, .. } in servers {
        let socket = socket.display();
        upstreams.push_str(&format!("  upstream {name} {{ server unix:{socket}; keepalive {CONNECTIONS}; }}\n"));
        locations.push_str(&format!("    location /kept/{name} {{ fastcgi_pass {name}; fastcgi_keep_conn on; }}\n"));
        locations.push_str(&format!("    location /closed/{name} {{ fastcgi_pass unix:{socket}; }}\n"));
    }
    let mut temporary = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        temporary.push_str(&format!("  {kind}_temp_path {folder}/{kind};\n"));
    }
    let configuration = format!(
        "daemon off;\nworker_processes 2;\npid {folder}/nginx.pid;\nerror_log stderr error;\nevents {{ worker_connections 1024; }}\nhttp {{\n  access_log off;\n  \
         keepalive_requests 100000000;\n{temporary}{upstreams}  server {{\n    listen 127.0.0.1:{port};\n{params}{locations}  }}\n}}\n"
    );
    let file = place.path("nginx.conf");
    fs::write(&file, configuration)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&file).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let mut process = command.spawn().map_err(|error| format!("nginx: {error}: apt-get install nginx"))?;
    let start = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        if start.elapsed() > Duration::from_secs(5) || process.try_wait()?.is_some() {
            return Err("nginx did not start".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Server { name: "nginx", socket: file, process })
}

/// Answers of 1 MiB and uploads of 10 MiB, the server on one processor.
fn large(plan: &Plan, place: &Place) -> Result<()> {
    run_on("1")?;
    let ours = place.start("gatespan", "0", place.peer("gatespan-large", &[]))?;
    let get = load::request("GET", 0, true);
    let answer = place.capture(&ours, &get, peers::LARGE_HEAD)?;
    let mut servers = vec![place.start("bare", "0", place.peer("bare", &[path(&answer)]))?, ours];
    if plan.wants("libfcgi") {
        let mut libfcgi = Command::new(&place.libfcgi);
        libfcgi.arg("large");
        servers.push(place.start("libfcgi", "0", libfcgi)?);
    }
    if plan.wants("tokio-fastcgi") {
        servers.push(place.start("tokio-fastcgi", "0", place.peer("tokio-fastcgi", &["large"]))?);
    }
    let downloads = rounds(plan, &servers, |path| load::large(path, &get, plan.extent(4, UP_TO_A_SECOND)))?;
    // The bare loop has one answer only; here it should be short.
    let post = load::request("POST", UPLOAD, true);
    let short = place.capture(&servers[1], &post, peers::HELLO)?;
    servers[0] = place.start("bare", "0", place.peer("bare", &[path(&short)]))?;
    let uploads = rounds(plan, &servers, |path| load::large(path, &post, plan.extent(4, UP_TO_A_SECOND)))?;
    println!(
        "Kept connections, four at once, Unix socket; the server on one processor. CPU is the server's, in µs a MiB."
    );
    for (name, samples, size) in [("1 MiB answers", downloads, peers::LARGE), ("10 MiB uploads", uploads, UPLOAD)] {
        println!("\n{name:<20} {:>10} {:>7} {:>8} {:>7}", "MB/s", "x bare", "CPU µs", "x bare");
        for (index, server) in servers.iter().enumerate() {
            let (rate, rate_ratio) = beside(&samples, index, |sample| sample.rate);
            let (cpu, cpu_ratio) = beside(&samples, index, |sample| sample.cpu);
            println!(
                "{:<20} {:>10.0} {rate_ratio:>7.2} {:>8.1} {cpu_ratio:>7.2}",
                server.name,
                rate * size as f64 / 1e6,
                cpu / (size as f64 / MIB)
            );
        }
    }
    run_on("0,1")
}

/// From the start of a CGI script to its end.
fn cgi(plan: &Plan, place: &Place) -> Result<()> {
    let mut programs = vec![("C", &place.hello_c), ("gatespan", &place.hello), ("empty tokio", &place.empty_tokio)];
    programs.extend(plan.beside.as_ref().map(|beside| ("gatespan-other", beside)));
    let runs = plan.rounds * 100;
    let variables = load::variables("GET", 0);
    let mut times = vec![Vec::new(); programs.len()];
    for run in 0..runs + 5 {
        for (index, (name, program)) in programs.iter().enumerate() {
            let mut command = Command::new(program);
            command.env_clear().envs(variables.iter().map(|(name, value)| (name, value)));
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
            let start = Instant::now();
            let output = command.spawn()?.wait_with_output()?;
            let time = start.elapsed();
            if output.stdout != peers::HELLO || !output.status.success() {
                return Err(format!(
                    "{name}: expected another answer than {:?}",
                    output.stdout.escape_ascii().to_string()
                )
                .into());
            }
            // The first ones bring the programs into memory.
            if run >= 5 {
                times[index].push(time.as_secs_f64() * 1e3);
            }
        }
    }
    println!(
        "One CGI run from start to end, {runs} runs of each in turn, ms; the difference is to the C program of the same turn."
    );
    println!("{:<20} {:>8} {:>8} {:>12} {:>12}", "", "mean", "median", "mean diff.", "median diff.");
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    for (index, (name, _)) in programs.iter().enumerate() {
        let differences: Vec<f64> = times[index].iter().zip(&times[0]).map(|(time, base)| time - base).collect();
        println!(
            "{name:<20} {:>8.3} {:>8.3} {:>12.3} {:>12.3}",
            mean(&times[index]),
            median(times[index].iter().copied()),
            mean(&differences),
            median(differences.iter().copied())
        );
    }
    Ok(())
}
