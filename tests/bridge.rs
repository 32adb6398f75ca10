//! `gatespan bridge`, from outside: every way in, every option with its effect, and how it ends. The tool itself is started, as people start it.
#![cfg(feature = "cli")]

#[path = "support/bridge.rs"]
mod bridge;
#[path = "support/fastcgi_client.rs"]
mod fastcgi_client;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bridge::{Bridge, Log, PORT, SOON, ask, body, header, status, tool};
use fastcgi_client::{Answer, Client};
use gatespan::protocol::fastcgi::Role;
use rustix::process::{Pid, Resource, Rlimit, Signal, geteuid, kill_process, prlimit};

/// One request over FastCGI, to a Unix socket.
fn fastcgi(stream: UnixStream, params: &[(&str, &str)]) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        stream.set_nonblocking(true).unwrap();
        let mut client = Client::new(tokio::net::UnixStream::from_std(stream).unwrap());
        let usual = [
            ("REQUEST_METHOD", "GET"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("SERVER_NAME", "localhost"),
            ("SERVER_PORT", "80"),
        ];
        let id = client.begin(Role::Responder, false, &[&usual, params].concat());
        client.end.end_stdin(id);
        client.answer(id).await
    })
}

/// A folder that all may read, with scripts of the shell in `cgi-bin`.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("gatespan-").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let folder = Self(folder);
        fs::create_dir(folder.path("cgi-bin")).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// With one script, called `script`.
    fn of(text: &str) -> Self {
        let folder = Self::new();
        folder.script("cgi-bin/script", text);
        folder
    }

    fn script(&self, name: &str, text: &str) {
        self.program(name, &format!("#!/bin/sh\n{text}\n"));
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn to(&self) -> String {
        format!("cgi:{}/", self.text("cgi-bin"))
    }

    /// A bridge from HTTP to these scripts.
    fn serve(&self, options: &[&str]) -> Bridge {
        Bridge::start(&[&[PORT, &self.to()], options].concat())
    }
}

/// The beginning of a script's answer.
const PLAIN: &str = "printf 'Content-Type: text/plain\\n\\n'\n";

fn plain(rest: &str) -> String {
    format!("{PLAIN}{rest}")
}

fn connect_abstract(name: &str) -> UnixStream {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap()
}

// Ways in.

#[test]
fn every_address_is_served_and_said() {
    let bridge = Bridge::start(&[PORT, "app:hello"]);
    assert_eq!(bridge.body("/"), "Hello by way of http.\n");
    assert!(bridge.log.line("serving").ends_with(&format!("serving app:hello at http://{}/", bridge.place)));
    bridge.stop();

    let folder = Folder::new();
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let bridge = Bridge::start(&[&format!("http:{}", folder.text("a.sock")), "app:hello"]);
    assert!(ask(UnixStream::connect(folder.path("a.sock")).unwrap(), request).ends_with("Hello by way of http.\n"));
    bridge.stop();
    assert!(!folder.path("a.sock").exists());

    let bridge = Bridge::start(&[&format!("fastcgi:{}", folder.text("b.sock")), "app:hello"]);
    assert!(
        fastcgi(UnixStream::connect(folder.path("b.sock")).unwrap(), &[])
            .text()
            .ends_with("Hello by way of fastcgi.\n")
    );
    bridge.stop();

    let name = format!("gatespan-test-{}", std::process::id());
    let bridge = Bridge::start(&[&format!("fastcgi:@{name}"), "app:hello"]);
    assert!(fastcgi(connect_abstract(&name), &[]).text().ends_with("Hello by way of fastcgi.\n"));
    bridge.stop();

    let bridge = Bridge::start(&["fastcgi://127.0.0.1:0", "app:hello"]);
    assert!(bridge.log.line("serving").contains("fastcgi://127.0.0.1:"));
    TcpStream::connect(&bridge.place).unwrap();
    bridge.stop();
}

#[test]
fn a_socket_that_is_handed_over_is_served_by_the_address() {
    let folder = Folder::new();
    for (from, is_http) in [("fastcgi:fd", false), ("http:fd", true)] {
        let path = folder.path(if is_http { "http.sock" } else { "fastcgi.sock" });
        let listener = UnixListener::bind(&path).unwrap();
        // As descriptor 0, whatever a CGI program further up has left in the environment.
        let mut command = tool(&["bridge", from, "app:hello"]);
        command.stdin(OwnedFd::from(listener.try_clone().unwrap())).env("GATEWAY_INTERFACE", "CGI/1.1");
        let bridge = Bridge::started(command);
        let hello = |path: &Path| match is_http {
            true => ask(UnixStream::connect(path).unwrap(), "GET / HTTP/1.0\r\n\r\n"),
            false => fastcgi(UnixStream::connect(path).unwrap(), &[]).text(),
        };
        assert!(hello(&path).contains("Hello by way of"));
        bridge.stop();
        // As LISTEN_FDS.
        let mut command = Command::new("/bin/sh");
        let script = format!("LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" bridge {from} app:hello 3<&0 </dev/null");
        command
            .args(["-c", &script, env!("CARGO_BIN_EXE_gatespan")])
            .stdin(OwnedFd::from(listener))
            .stderr(Stdio::piped());
        let bridge = Bridge::started(command);
        assert!(hello(&path).contains("Hello by way of"));
        bridge.stop();
        assert!(path.exists(), "it is not its own to remove");
    }
    let output = tool(&["bridge", "fastcgi:fd", "app:hello"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).contains("expected a socket that was handed over"), "{}", errors(&output));
}

/// The unit's own command line, started as systemd starts it.
#[test]
fn the_systemd_units_start_it_at_the_first_connection() {
    let unit = |name: &str| {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/servers/systemd").join(name)).unwrap()
    };
    let value = |unit: &str, key: &str| -> String {
        let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{key} is not in the unit")).to_owned()
    };
    assert_eq!(value(&unit("gatespan.socket"), "ListenStream"), "/run/gatespan.sock");
    let folder = Folder::of(&plain("echo hello from $SCRIPT_NAME"));
    let start = value(&unit("gatespan.service"), "ExecStart");
    let start = start.replace("/usr/bin/gatespan", env!("CARGO_BIN_EXE_gatespan"));
    let start = start.replace("/usr/lib/cgi-bin", &folder.text("cgi-bin"));
    assert!(start.contains(&folder.text("cgi-bin")), "{start}");
    let mut activate = Command::new("systemd-socket-activate");
    activate
        .arg("--listen")
        .arg(folder.path("s.sock"))
        .args(start.split(' '))
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = activate.spawn().expect("systemd-socket-activate is installed");
    let log = Log::of(child.stderr.take().unwrap());
    let mut bridge = Bridge { child, place: String::new(), log };
    bridge.log.line("Listening on");
    for _ in 0..2 {
        let script = folder.text("cgi-bin/script");
        let params = [("SCRIPT_FILENAME", &*script), ("SCRIPT_NAME", "/cgi-bin/script")];
        let answer = fastcgi(UnixStream::connect(folder.path("s.sock")).unwrap(), &params);
        assert!(answer.text().ends_with("hello from /cgi-bin/script\n"), "{answer:?}");
    }
    bridge.signal(Signal::TERM);
    assert_eq!(bridge.end(), Some(0));
}

/// The location that stands in for fcgiwrap's example, with the socket and the folder of this test.
#[test]
fn nginx_serves_cgi_programs_with_the_location_as_it_stands() {
    let folder = Folder::of(&plain("echo \"$SCRIPT_NAME|$PATH_INFO|$QUERY_STRING\""));
    folder.script("cgi-bin/from", "printf 'Location: /cgi-bin/script/x?y\\n\\n'");
    let location = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/servers/nginx/cgi-bin.location");
    let location =
        fs::read_to_string(location).unwrap().replace("/usr/lib;", &format!("{};", folder.0.path().display()));
    let location = location.replace("/run/gatespan.sock", &folder.text("a.sock"));
    let user = if geteuid().is_root() { "user root;" } else { "" };
    let nginx = format!(
        "daemon off; {user} pid {dir}/pid; error_log stderr; events {{}}
        http {{ access_log off; client_body_temp_path {dir}/b; fastcgi_temp_path {dir}/f; proxy_temp_path {dir}/p;
        uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s; server {{ listen unix:{dir}/nginx.sock; {location} }} }}",
        dir = folder.0.path().display()
    );
    fs::write(folder.path("nginx.conf"), nginx).unwrap();
    let bridge = Bridge::start(&[&format!("fastcgi:{}", folder.text("a.sock")), &folder.to()]);
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-c").arg(folder.path("nginx.conf")).args(["-e", "stderr"]).stderr(Stdio::piped());
    let mut child = command.spawn().expect("nginx is installed");
    let log = Log::of(child.stderr.take().unwrap());
    let mut nginx = Bridge { child, place: String::new(), log };
    let mut get = |path: &str| {
        let stream = wait_for(|| UnixStream::connect(folder.path("nginx.sock")).ok());
        assert!(nginx.child.try_wait().unwrap().is_none(), "{:?}", nginx.log.lines());
        ask(stream, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    };
    assert_eq!(body(&get("/cgi-bin/script/a%20b?c=d")), "/cgi-bin/script|/a b|c=d\n");
    assert_eq!(body(&get("/cgi-bin/from")), "/cgi-bin/script|/x|y\n");
    assert_eq!(status(&get("/cgi-bin/none")), 403);
    assert_eq!(status(&get("/elsewhere")), 404);
    nginx.signal(Signal::QUIT);
    nginx.end();
    bridge.stop();
}

// As a CGI script.

fn as_script(folder: &Folder, first_line: &str, arguments: &[&str]) -> Output {
    let first_line = first_line.replacen("gatespan", env!("CARGO_BIN_EXE_gatespan"), 1);
    folder.program("bridge.cgi", &format!("#!/usr/bin/env -S {first_line}\n"));
    let mut command = Command::new(folder.path("bridge.cgi"));
    command.args(arguments).stdin(Stdio::null()).env_clear();
    for (name, value) in [
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("REQUEST_METHOD", "GET"),
        ("SCRIPT_NAME", "/bridge.cgi"),
        ("PATH_INFO", "/script/x"),
        ("SCRIPT_FILENAME", &folder.text("bridge.cgi")),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("SERVER_NAME", "localhost"),
        ("SERVER_PORT", "80"),
        ("PATH", "/usr/bin:/bin"),
    ] {
        command.env(name, value);
    }
    command.output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn output(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn cve_2012_1823_a_script_of_two_lines_is_a_bridge_and_nothing_after_to_is_read() {
    let folder = Folder::of(&plain("echo \"$SCRIPT_NAME $PATH_INFO\""));
    let mark = folder.text("mark");
    let lines = [
        format!("gatespan bridge cgi: {}", folder.to()),
        format!("gatespan -q bridge --timeout 30s cgi: -c 3 {}", folder.to()),
    ];
    let foreign = ["--access-log", &mark, "--debug", "--help", "-s", "--", "--interpreter", ".x=/bin/sh", "app:hello"];
    for line in &lines {
        for count in 0..=foreign.len() {
            let answer = as_script(&folder, line, &foreign[foreign.len() - count..]);
            assert_eq!(answer.status.code(), Some(0), "{}", errors(&answer));
            let text = output(&answer);
            assert!(
                text.starts_with("Status: 200 OK\r\n") && text.ends_with("\r\n\r\n/bridge.cgi/script /x\n"),
                "{text}"
            );
        }
    }
    assert!(!Path::new(&mark).exists());
}

#[test]
fn cve_2012_1823_a_bridge_that_is_not_whole_reads_no_words_of_a_client() {
    let folder = Folder::of(&plain("echo never"));
    let to = folder.to();
    let first_lines =
        ["gatespan", "gatespan bridge", "gatespan bridge cgi:", "gatespan bridge cgi: --root", "gatespan man"];
    for line in first_lines {
        for arguments in [&[][..], &["cgi:", &to], &[&to], &["--help"], &["bridge", "cgi:", &to]] {
            let answer = as_script(&folder, line, arguments);
            assert_eq!(answer.status.code(), Some(1), "{line} {arguments:?}");
            assert!(
                output(&answer).starts_with("Status: 500 Internal Server Error\r\n"),
                "{line} {arguments:?}: {}",
                output(&answer)
            );
            assert!(!errors(&answer).is_empty());
        }
    }
}

#[test]
fn as_a_script_what_is_wrong_with_the_command_line_is_500_and_logged() {
    let folder = Folder::new();
    for (line, expected) in [
        ("gatespan bridge cgi: cgi:/no/such/folder", "/no/such/folder"),
        ("gatespan bridge --timeout never cgi: app:hello", "got \"never\""),
        ("gatespan bridge cgi: app:nothing", "app:hello"),
        ("gatespan bridge --script-name /x cgi: app:hello", "--script-name"),
        ("gatespan bridge --access-log - cgi: app:hello", "standard output is the answer"),
    ] {
        let answer = as_script(&folder, line, &[]);
        assert!(matches!(answer.status.code(), Some(1 | 2)), "{line}");
        assert!(output(&answer).starts_with("Status: 500 Internal Server Error\r\n"), "{line}: {}", output(&answer));
        assert!(errors(&answer).contains(expected), "{line}: {}", errors(&answer));
    }
    let answer =
        as_script(&folder, &format!("gatespan bridge --access-log {} cgi: app:hello", folder.text("log")), &[]);
    assert!(output(&answer).ends_with("Hello by way of cgi.\n"));
    assert!(fs::read_to_string(folder.path("log")).unwrap().contains("\"GET /bridge.cgi/script/x HTTP/1.1\" 200 21"));
}

// Routes and names.

#[test]
fn the_longest_route_wins_and_the_rest_is_tos() {
    let routes = ["--route", "/a=app:hello", "--route", "/a/b=app:environ", "--route", "/e/=app:echo"];
    let bridge = Bridge::start(&[&[PORT, "app:demo"], &routes[..]].concat());
    assert_eq!(bridge.body("/a/x"), "Hello by way of http.\n");
    let environ = bridge.body("/a/b/c?d");
    assert!(environ.contains("SCRIPT_NAME=/a/b\n") && environ.contains("PATH_INFO=/c\n"), "{environ}");
    assert!(bridge.body("/").starts_with("Hello from one small application"));
    let post = "POST /e HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    let answer = bridge.ask(post);
    assert!(answer.ends_with("hello") && header(&answer, "content-type") == Some("text/x"), "{answer}");
}

/// As nginx's stock parameters have it: all of the path is SCRIPT_NAME.
#[test]
fn routes_are_found_behind_fastcgi_without_path_info() {
    let folder = Folder::new();
    let from = format!("fastcgi:{}", folder.text("a.sock"));
    let _bridge = Bridge::start(&[&from, "app:hello", "--route", "/env=app:environ"]);
    let ask =
        |name: &str| fastcgi(UnixStream::connect(folder.path("a.sock")).unwrap(), &[("SCRIPT_NAME", name)]).text();
    assert!(ask("/other").ends_with("Hello by way of fastcgi.\n"));
    let environ = ask("/env/x");
    assert!(environ.contains("\nSCRIPT_NAME=/env\n") && environ.contains("\nPATH_INFO=/x\n"), "{environ}");
}

#[test]
fn script_name_is_where_all_of_it_is() {
    let bridge = Bridge::start(&[PORT, "app:environ", "--script-name", "/app/"]);
    assert!(bridge.log.line("serving").ends_with("/app/"));
    let environ = bridge.body("/app/x");
    assert!(environ.contains("\nSCRIPT_NAME=/app\n") && environ.contains("PATH_INFO=/x\n"), "{environ}");
    assert_eq!(status(&bridge.get("/apple")), 404);
}

#[test]
fn local_redirects_are_run_again_and_only_so_often() {
    let folder = Folder::of(&plain("echo \"$REQUEST_METHOD $SCRIPT_NAME $PATH_INFO $QUERY_STRING $REDIRECT_URL\""));
    folder.script("cgi-bin/from", "printf 'Location: /app/script/x?y=z\\n\\n'");
    folder.script("cgi-bin/circle", "printf 'Location: /app/circle\\n\\n'");
    folder.script("cgi-bin/other", "printf 'Location: /elsewhere\\n\\n'");
    let bridge = folder.serve(&["--script-name", "/app", "--max-redirects", "3"]);
    let post = "POST /app/from HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
    assert_eq!(body(&bridge.ask(post)), "GET /app/script /x y=z /app/from\n");
    assert_eq!(status(&bridge.get("/app/circle")), 508);
    assert_eq!(bridge.log.line("at most 3 local redirects").matches(" -> ").count(), 4);
    let answer = bridge.get("/app/other");
    assert_eq!((status(&answer), header(&answer, "location")), (302, Some("/elsewhere")));
}

#[test]
fn local_redirects_work_where_nginx_has_found_the_script() {
    let folder = Folder::of(&plain("echo \"$SCRIPT_NAME $PATH_INFO $SCRIPT_FILENAME\""));
    folder.script("cgi-bin/from", "printf 'Location: /cgi-bin/script/x\\n\\n'");
    let bridge = Bridge::start(&[&format!("fastcgi:{}", folder.text("a.sock")), &folder.to()]);
    let from = folder.text("cgi-bin/from");
    let params = [("SCRIPT_NAME", "/cgi-bin/from"), ("SCRIPT_FILENAME", &*from), ("DOCUMENT_ROOT", "/var/www")];
    let answer = fastcgi(UnixStream::connect(folder.path("a.sock")).unwrap(), &params);
    let expected = format!("/cgi-bin/script /x {}\n", folder.text("cgi-bin/script"));
    assert!(answer.text().ends_with(&expected), "{answer:?}");
    bridge.stop();
}

// Sockets.

#[test]
fn a_socket_has_the_mode_and_owner_that_were_asked_for() {
    let folder = Folder::new();
    let from = format!("fastcgi:{}", folder.text("a.sock"));
    let mode = |options: &[&str]| {
        let bridge = Bridge::start(&[&[&*from, "app:hello"], options].concat());
        let metadata = fs::metadata(folder.path("a.sock")).unwrap();
        bridge.stop();
        (metadata.mode() & 0o777, metadata.uid(), metadata.gid())
    };
    let (own, _, group) = mode(&[]);
    assert_eq!(own, 0o660);
    assert_eq!(mode(&["--socket-mode", "600"]).0, 0o600);
    if geteuid().is_root() {
        assert_eq!(mode(&["--socket-owner", "12345:54321"]), (0o660, 12_345, 54_321));
        assert_eq!(mode(&["--socket-owner", "nobody"]), (0o660, 65_534, group));
    }
}

#[test]
fn fastcgi_outside_loopback_needs_allow() {
    let output = tool(&["bridge", "fastcgi://0.0.0.0:0", "app:hello"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("can be reached from other machines"), "{}", errors(&output));
    let bridge = Bridge::start(&["fastcgi://0.0.0.0:0", "app:hello", "--allow", "192.0.2.1", "--allow", "2001:db8::1"]);
    let (_, port) = bridge.place.rsplit_once(':').unwrap();
    let mut refused = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap();
    assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)));
    bridge.log.line("not on the allow-list");
}

/// Connects as somebody else, and comes back when the connection has ended or nothing came for a while.
const CONNECT_AS_NOBODY: &str = "import os, socket, sys
os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
s.settimeout(1)
s.connect(chr(0) + sys.argv[1])
s.recv(1)";

#[test]
fn an_abstract_socket_takes_the_users_that_were_named() {
    // Only root can be somebody else.
    if !geteuid().is_root() {
        return;
    }
    let name = format!("gatespan-users-{}", std::process::id());
    for (options, is_refused) in
        [(&[][..], true), (&["--allow-user", "daemon"], true), (&["--allow-user", "nobody"], false)]
    {
        let bridge = Bridge::start(&[&[&format!("fastcgi:@{name}"), "app:hello"], options].concat());
        let connected =
            Command::new("python3").args(["-c", CONNECT_AS_NOBODY, &name]).output().expect("python3 is installed");
        // One that is taken is waited for until the time is over, which is Python's error.
        assert_eq!(connected.status.success(), is_refused, "{options:?}: {}", errors(&connected));
        bridge.stop();
    }
}

#[test]
fn a_client_that_has_no_pid_here_is_served() {
    // Only root can be somewhere else.
    if !geteuid().is_root() {
        return;
    }
    let name = format!("gatespan-elsewhere-{}", std::process::id());
    let bridge = tool(&["bridge", &format!("fastcgi:@{name}"), "app:hello"]);
    let mut elsewhere = Command::new("unshare");
    elsewhere.args(["--pid", "--fork", "--kill-child"]).arg(bridge.get_program()).args(bridge.get_args());
    elsewhere.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let _bridge = Bridge::started(elsewhere);
    assert!(fastcgi(connect_abstract(&name), &[]).text().ends_with("Hello by way of fastcgi.\n"));
}

#[test]
fn an_answer_that_waits_for_room_needs_no_descriptor_more() {
    let folder = Folder::new();
    let socket = folder.path("socket");
    let bridge = Bridge::start(&[&format!("http:{}", socket.display()), "app:echo"]);
    let mut client = UnixStream::connect(&socket).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    let mut ask = |length: usize| {
        write!(client, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n").unwrap();
        let mut sending = client.try_clone().unwrap();
        // More than the sockets hold, so that the bridge has to wait for who reads later.
        let sender = std::thread::spawn(move || sending.write_all(&vec![b'x'; length]).is_ok());
        std::thread::sleep(Duration::from_millis(200));
        let (mut received, mut part) = (0, vec![0; 1 << 16]);
        while received < length {
            match client.read(&mut part).unwrap() {
                0 => panic!("it ended after {received} bytes"),
                len => received += part[..len].iter().filter(|byte| **byte == b'x').count(),
            }
        }
        assert!(sender.join().unwrap());
    };
    ask(1);
    let pid = Pid::from_child(&bridge.child);
    let open = || -> BTreeSet<u64> {
        let names = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.to_str().unwrap().parse().unwrap()).collect()
    };
    let before = open();
    ask(8 << 20);
    assert_eq!(open(), before, "something is held for as long as the connection is open");
    // One more would have the lowest number that is free.
    let free = (0..).find(|number| !before.contains(number));
    let limit = Rlimit { current: free, maximum: free };
    prlimit(Some(pid), Resource::Nofile, limit).unwrap();
    ask(8 << 20);
    bridge.stop();
}

#[test]
fn connections_over_the_limit_wait() {
    let bridge = Bridge::start(&[PORT, "app:hello", "--max-connections", "1"]);
    let mut first = TcpStream::connect(&bridge.place).unwrap();
    first.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    first.read_exact(&mut [0; 100]).unwrap();
    let mut second = TcpStream::connect(&bridge.place).unwrap();
    second.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    second.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(second.read(&mut [0]).is_err());
    drop(first);
    second.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(second.read(&mut [0]).unwrap(), 1);
}

#[test]
fn a_body_over_the_limit_is_413() {
    let bridge = Bridge::start(&[PORT, "app:echo", "--max-body", "1K"]);
    let post = |length: usize| {
        let body = "x".repeat(length);
        bridge.ask(&format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ))
    };
    assert_eq!(status(&post(1024)), 200);
    assert_eq!(status(&post(1025)), 413);
}

#[test]
fn threads_are_as_many_as_asked_for() {
    let threads = |number: &str| {
        let bridge = Bridge::start(&[PORT, "app:hello", "--threads", number]);
        bridge.body("/");
        fs::read_dir(format!("/proc/{}/task", bridge.child.id())).unwrap().count()
    };
    assert_eq!(threads("1"), 1);
    assert_eq!(threads("5"), 1 + 5);
}

// How it ends.

#[test]
fn running_requests_are_finished_within_the_limit_and_a_second_signal_ends_them() {
    let folder = Folder::of(&plain("echo begun; sleep 1; echo done"));
    let begun = |bridge: &Bridge| {
        let mut stream = TcpStream::connect(&bridge.place).unwrap();
        stream.write_all(b"GET /script HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        let mut byte = [0];
        while !answer.ends_with("begun") {
            stream.read_exact(&mut byte).unwrap();
            answer.push(char::from(byte[0]));
        }
        stream
    };
    let rest = |mut stream: TcpStream| {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        String::from_utf8(rest).unwrap()
    };
    let bridge = folder.serve(&[]);
    let stream = begun(&bridge);
    bridge.stop();
    assert_eq!(rest(stream), "\ndone\n");

    folder.script("cgi-bin/script", &plain("echo begun; sleep 300; echo done"));
    let bridge = folder.serve(&["--shutdown-timeout", "300ms"]);
    let stream = begun(&bridge);
    let asked = Instant::now();
    bridge.stop();
    assert!(asked.elapsed() < Duration::from_secs(20));
    assert!(!rest(stream).contains("done"));

    let mut bridge = folder.serve(&[]);
    let stream = begun(&bridge);
    bridge.signal(Signal::TERM);
    bridge.log.line("another signal ends them");
    bridge.signal(Signal::TERM);
    assert_eq!(bridge.end(), Some(143));
    assert!(!rest(stream).contains("done"));
}

#[test]
fn mistakes_on_the_command_line_are_exit_code_2_and_say_what_was_expected() {
    for (arguments, expected) in [
        (&[][..], "<FROM>"),
        (&[PORT], "<TO>"),
        (&["8080", "app:hello"], "http://127.0.0.1:8080"),
        (&["https://localhost", "app:hello"], "expected where requests come in"),
        (&["cgi:/srv/", "app:hello"], "expected where requests come in"),
        (&["fastcgi://localhost", "app:hello"], "without a port"),
        (&[PORT, "app:nothing"], "expected one of app:hello, app:environ"),
        (&[PORT, "cgi:"], "cgi:/FOLDER/"),
        (&[PORT, "gopher://host"], "file:/FOLDER or app:NAME, got \"gopher://host\""),
        (&[PORT, "./cgi-bin/"], "file:/FOLDER or app:NAME, got \"./cgi-bin/\""),
        (&["http:127.0.0.1:8080", "app:hello"], "expected // before HOST:PORT"),
        (&[PORT, "app:hello", "--timeout", "99999999999999"], "at most 10000d"),
        (&[PORT, "app:hello", "-f"], "--stderr-to-server is for fastcgi:"),
        (&[PORT, "app:hello", "--route", "a=app:hello"], "beginning of a path"),
        (&[PORT, "app:hello", "--route", "/a"], "/PREFIX=TO"),
        (&[PORT, "app:hello", "--route", "/a=app:b"], "app:hello"),
        (&[PORT, "app:hello", "--timeout", "soon"], "such as 30s, 500ms, 2m or 1h30m, got \"soon\""),
        (&[PORT, "app:hello", "--spool-limit", "lots"], "such as 65536, 64K, 10M or 1G, got \"lots\""),
        (&[PORT, "app:hello", "--concurrent", "0"], "a number from 1 on, got \"0\""),
        (&[PORT, "app:hello", "--socket-mode", "999"], "octal digits such as 660"),
        (&[PORT, "app:hello", "--interpreter", "py=python3"], ".py=/usr/bin/python3"),
        (&[PORT, "app:hello", "--env", "A"], "NAME=VALUE"),
        (&[PORT, "app:hello", "--accel-root", "x=/srv"], "/protected/=/srv/files"),
        (&[PORT, "app:hello", "--allow", "127.0.0.1"], "--allow is for fastcgi:"),
        (&[PORT, "app:hello", "--group", "daemon"], "--user"),
        (&["fastcgi:@gatespan-never", "app:hello", "--max-body", "1"], "--max-body is for http:"),
        (&["fastcgi:@gatespan-never", "app:hello", "--socket-owner", "0"], "--socket-owner is for"),
    ] {
        let output = tool(&[&["bridge"], arguments].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", errors(&output));
        assert!(errors(&output).contains(expected), "{arguments:?}: {}", errors(&output));
    }
}

#[test]
fn what_can_not_be_served_is_exit_code_1_before_anything_listens() {
    let folder = Folder::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("http://{}", taken.local_addr().unwrap());
    let missing = folder.text("missing");
    let missing_target = format!("cgi:{missing}");
    for (arguments, expected) in [
        (&[&*taken, "app:hello"][..], "could not listen there"),
        (&[PORT, &missing_target], "expected a program at "),
        (&[PORT, &format!("{missing_target}/")], "expected a folder of scripts at "),
        (&[PORT, &folder.to(), "--root", &missing], "missing"),
        (&[PORT, &folder.to(), "--interpreter", ".x=/no/such/program"], "/no/such/program"),
        (&[PORT, &folder.to(), "--user", "no-such-user"], "no-such-user"),
        (&[PORT, "app:hello", "--send-file-root", &missing], "missing"),
        (&[PORT, "app:hello", "--access-log", "/no/such/folder/log"], "/no/such/folder/log"),
    ] {
        let output = tool(&[&["bridge"], arguments].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", errors(&output));
        assert!(
            errors(&output).contains(expected) && !errors(&output).contains("serving"),
            "{arguments:?}: {}",
            errors(&output)
        );
    }
}

// Logs and request ids.

#[test]
fn the_access_log_goes_to_a_file_that_is_opened_anew_at_sighup() {
    let folder = Folder::new();
    let (log, moved) = (folder.path("log"), folder.path("log.1"));
    fs::write(&log, "before\n").unwrap();
    let bridge = Bridge::start(&[PORT, "app:hello", "--access-log", log.to_str().unwrap()]);
    let answer = bridge.ask("GET /one HTTP/1.1\r\nHost: localhost\r\nUser-Agent: test\r\nConnection: close\r\n\r\n");
    let id = header(&answer, "X-Request-Id").unwrap().to_owned();
    let written = wait_for(|| fs::read_to_string(&log).ok().filter(|text| text.contains("/one")));
    assert!(written.starts_with("before\n127.0.0.1 - - ["), "{written}");
    assert!(
        written.contains("\"GET /one HTTP/1.1\" 200 22 \"-\" \"test\" ") && written.ends_with(&format!(" {id}\n")),
        "{written}"
    );
    fs::rename(&log, &moved).unwrap();
    bridge.signal(Signal::HUP);
    wait_for(|| log.exists().then_some(()));
    bridge.body("/two");
    let written = wait_for(|| fs::read_to_string(&log).ok().filter(|text| text.contains("/two")));
    assert_eq!(written.lines().count(), 1);
    assert_eq!(fs::metadata(&log).unwrap().mode() & 0o777, 0o640);
    assert!(!fs::read_to_string(&moved).unwrap().contains("/two"));
    bridge.stop();
}

#[test]
fn with_log_format_json_every_line_is_an_object() {
    let folder = Folder::of("echo no head; echo oh >&2");
    let mut command = tool(&["bridge", PORT, &folder.to(), "--access-log", "-", "--log-format", "json"]);
    let mut bridge = {
        command.stdout(Stdio::piped());
        Bridge::started(command)
    };
    let stdout = Log::of(bridge.child.stdout.take().unwrap());
    let answer = bridge.get("/script");
    assert!(status(&answer) >= 500, "{answer}");
    let line: serde_json::Value = serde_json::from_str(&stdout.line("/script")).unwrap();
    assert_eq!((&line["target"], &line["status"]), (&"/script".into(), &status(&answer).into()));
    assert_eq!(line["request_id"].as_str(), header(&answer, "x-request-id"));
    bridge.signal(Signal::TERM);
    assert_eq!(bridge.end(), Some(0));
    let lines = bridge.log.lines();
    assert!(lines.len() >= 3, "{lines:?}");
    for line in lines {
        assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok_and(|line| line.is_object()), "{line}");
    }
}

#[test]
fn quiet_says_nothing_of_the_start() {
    let folder = Folder::new();
    let from = format!("http:{}", folder.text("a.sock"));
    let mut child = tool(&["-q", "bridge", &from, "app:hello"]).spawn().unwrap();
    let request = "GET / HTTP/1.0\r\n\r\n";
    let stream = wait_for(|| UnixStream::connect(folder.path("a.sock")).ok());
    assert!(ask(stream, request).contains("Hello"));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
}

#[test]
fn each_request_has_an_id_that_is_kept_or_made() {
    let ask = |options: &[&str], field: &str| {
        let bridge = Bridge::start(&[&[PORT, "app:environ"], options].concat());
        let answer = bridge.ask(&format!("GET / HTTP/1.1\r\nHost: localhost\r\n{field}Connection: close\r\n\r\n"));
        let told =
            body(&answer).lines().find_map(|line| line.strip_prefix("HTTP_X_REQUEST_ID=").map(str::to_owned)).unwrap();
        (header(&answer, "x-request-id").map(str::to_owned), told)
    };
    let (sent, told) = ask(&[], "");
    assert_eq!((sent, told.len()), (Some(told.clone()), 16));
    assert_eq!(ask(&[], "X-Request-Id: abc\r\n"), (Some("abc".into()), "abc".into()));
    let (sent, told) = ask(&["--request-id", "off"], "X-Request-Id: a b\r\n");
    assert_eq!((sent, told.len()), (None, 16));
}

// Scripts.

#[test]
fn scripts_are_found_in_every_root_and_by_index() {
    let folder = Folder::of(&plain("echo first"));
    folder.script("second/other", &plain("echo second"));
    folder.script("second/script", &plain("echo never"));
    folder.script("cgi-bin/sub/index.cgi", &plain("echo index"));
    let options = ["--root", &folder.text("second"), "--index", "index.sh", "--index", "index.cgi"];
    let bridge = folder.serve(&options);
    assert_eq!(bridge.body("/script"), "first\n");
    assert_eq!(bridge.body("/other"), "second\n");
    assert_eq!(bridge.body("/sub/"), "index\n");
    assert_eq!(status(&bridge.get("/none")), 404);
    assert!(status(&folder.serve(&[]).get("/sub/")) >= 400);
}

#[test]
fn one_program_answers_for_all_paths() {
    let folder = Folder::of(&plain("echo \"$SCRIPT_NAME|$PATH_INFO\""));
    let bridge = Bridge::start(&[PORT, &format!("cgi:{}", folder.text("cgi-bin/script"))]);
    assert_eq!(bridge.body("/a/b"), "|/a/b\n");
}

#[test]
fn an_interpreter_runs_files_of_its_ending() {
    let folder = Folder::new();
    fs::write(folder.path("cgi-bin/a.txt"), plain("echo run")).unwrap();
    assert!(status(&folder.serve(&[]).get("/a.txt")) >= 400);
    assert_eq!(folder.serve(&["--interpreter", ".txt=/bin/sh"]).body("/a.txt"), "run\n");
}

#[test]
fn variables_are_set_and_let_through_by_name() {
    let folder = Folder::of(&plain("echo \"$GREETING|$PERL5LIB|$UNNAMED\""));
    let ask = |options: &[&str]| {
        let mut command = tool(&[&["bridge", PORT, &folder.to()], options].concat());
        command.env("PERL5LIB", "/lib/perl").env("UNNAMED", "own");
        Bridge::started(command).body("/script")
    };
    assert_eq!(ask(&[]), "||\n");
    assert_eq!(ask(&["--env", "GREETING=a=b", "--pass-env", "PERL5LIB"]), "a=b|/lib/perl|\n");
    assert_eq!(ask(&["--pass-env", "PERL*", "--pass-env", "UNNAMED"]), "|/lib/perl|own\n");
}

#[test]
fn scripts_run_as_the_user_that_was_named() {
    let folder = Folder::of(&plain("id -u; id -g"));
    if !geteuid().is_root() {
        let output = tool(&["bridge", PORT, &folder.to(), "--user", "nobody"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        return assert!(errors(&output).contains("expected to be started by root"), "{}", errors(&output));
    }
    assert_eq!(folder.serve(&["--user", "nobody"]).body("/script"), "65534\n65534\n");
    assert_eq!(folder.serve(&["--user", "nobody", "--group", "daemon"]).body("/script"), "65534\n1\n");
}

#[test]
fn a_folder_that_the_scripts_user_may_not_search_is_named() {
    if !geteuid().is_root() {
        // Only root can run scripts as somebody else.
        return;
    }
    let folder = Folder::of(&plain("echo fine"));
    let bridge = folder.serve(&["--user", "nobody", "--debug"]);
    assert_eq!(status(&bridge.get("/script")), 200);
    fs::set_permissions(folder.path(""), fs::Permissions::from_mode(0o700)).unwrap();
    let answer = bridge.get("/script");
    assert_eq!(status(&answer), 403, "{answer}");
    let expected = format!("expected the working directory {}, which can&#39;t be entered", folder.text("cgi-bin"));
    assert!(answer.contains(&expected) && answer.contains("all folders above it"), "{answer}");
}

#[test]
fn words_of_a_query_are_arguments_only_when_asked_for() {
    let folder = Folder::of(&plain("echo \"$#:$1:$2\""));
    assert_eq!(folder.serve(&[]).body("/script?a+b"), "0::\n");
    let bridge = folder.serve(&["--isindex"]);
    assert_eq!(bridge.body("/script?a+b"), "2:a:b\n");
    assert_eq!(bridge.body("/script?a=b"), "0::\n");
    assert!(bridge.body("/script?-s").starts_with("0:"));
}

#[test]
fn what_scripts_write_to_standard_error_is_logged_and_sent_on_by_option() {
    let folder = Folder::of(&plain("echo oh dear >&2; echo fine"));
    for (options, is_sent) in [(&[][..], false), (&["-f"], true), (&["--stderr-to-server"], true)] {
        let from = format!("fastcgi:{}", folder.text("a.sock"));
        let bridge = Bridge::start(&[&[&*from, &folder.to()], options].concat());
        let script = folder.text("cgi-bin/script");
        let params = [("SCRIPT_FILENAME", &*script), ("SCRIPT_NAME", "/script"), ("HTTP_X_REQUEST_ID", "the-id")];
        let answer = fastcgi(UnixStream::connect(folder.path("a.sock")).unwrap(), &params);
        assert!(answer.text().ends_with("fine\n"), "{answer:?}");
        assert_eq!(answer.errors().contains("oh dear"), is_sent, "{options:?}: {answer:?}");
        assert!(bridge.log.line("oh dear").contains("the-id"));
        bridge.stop();
    }
}

#[test]
fn a_response_that_is_cut_behind_fastcgi_is_in_the_bridges_own_log_too() {
    let folder = Folder::of("printf 'Content-Type: text/plain\\nContent-Length: 9\\n\\nshort'");
    let bridge = Bridge::start(&[&format!("fastcgi:{}", folder.text("a.sock")), &folder.to()]);
    let script = folder.text("cgi-bin/script");
    let params = [("SCRIPT_FILENAME", &*script), ("SCRIPT_NAME", "/script"), ("HTTP_X_REQUEST_ID", "the-id")];
    let answer = fastcgi(UnixStream::connect(folder.path("a.sock")).unwrap(), &params);
    assert!(answer.end.is_none() && answer.errors().contains("Content-Length"), "{answer:?}");
    let line = bridge.log.line("response was cut");
    assert!(line.contains("the-id") && line.contains(&script) && line.contains("Content-Length"), "{line}");
}

#[test]
fn debug_pages_say_what_the_log_says() {
    let folder = Folder::of("echo garbage");
    let text = |options: &[&str]| {
        let bridge = folder.serve(options);
        let answer = bridge.get("/script");
        assert_eq!(status(&answer), 502, "{answer}");
        assert!(bridge.log.line("garbage").contains("/script"));
        body(&answer)
    };
    assert!(!text(&[]).contains("garbage"));
    assert!(text(&["--debug"]).contains("garbage"));
}

/// A request whose body has no length.
fn chunked(bridge: &Bridge, length: usize) -> String {
    let body = format!("{length:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(length));
    bridge.ask(&format!(
        "POST /script HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{body}"
    ))
}

#[test]
fn a_body_without_a_length_is_spooled_or_streamed() {
    let folder = Folder::of(&plain("echo \"${CONTENT_LENGTH-none} $(wc -c)\""));
    assert_eq!(body(&chunked(&folder.serve(&[]), 5000)), "5000 5000\n");
    assert_eq!(body(&chunked(&folder.serve(&["--request-body", "stream"]), 5000)), "none 5000\n");
    let bridge = folder.serve(&["--spool-limit", "4K"]);
    assert_eq!(status(&chunked(&bridge, 4096)), 200);
    assert_eq!(status(&chunked(&bridge, 4097)), 413);
}

#[test]
fn a_longer_body_is_spooled_in_a_file_that_has_no_name() {
    let folder =
        Folder::of(&plain("ls -l /proc/$PPID/fd /proc/$$/fd | grep -q \"$SPOOL\" && echo file || echo memory; wc -c"));
    let spool = folder.text("spool");
    fs::create_dir(&spool).unwrap();
    let variable = format!("SPOOL={spool}");
    for (limit, place) in [("64K", "memory"), ("1K", "file")] {
        let mut command = tool(&["bridge", PORT, &folder.to(), "--spool-memory", limit, "--env", &variable]);
        command.env("TMPDIR", &spool);
        let bridge = Bridge::started(command);
        assert_eq!(body(&chunked(&bridge, 5000)), format!("{place}\n5000\n"), "{limit}");
        assert_eq!(fs::read_dir(&spool).unwrap().count(), 0);
    }
}

#[test]
fn time_limits_are_504_before_the_head_and_cut_what_comes_after() {
    let folder = Folder::of("sleep 300");
    let began = Instant::now();
    assert_eq!(status(&folder.serve(&["--head-timeout", "200ms"]).get("/script")), 504);
    assert_eq!(status(&folder.serve(&["--timeout", "200ms"]).get("/script")), 504);
    folder.script("cgi-bin/script", &plain("echo begun; sleep 300; echo done"));
    for option in ["--read-timeout", "--timeout"] {
        let answer = folder.serve(&[option, "300ms"]).get("/script");
        assert_eq!(status(&answer), 200, "{answer}");
        assert!(answer.contains("begun") && !answer.ends_with("0\r\n\r\n"), "{option}: {answer}");
    }
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_script_that_does_not_heed_term_is_killed_after_the_grace() {
    let folder = Folder::new();
    let mark = folder.text("pid");
    folder.script("cgi-bin/script", &format!("trap '' TERM; echo $$ > {mark}; {PLAIN}while :; do sleep 1; done"));
    let bridge = folder.serve(&["--timeout", "300ms", "--kill-grace", "300ms"]);
    bridge.get("/script");
    let pid = fs::read_to_string(&mark).unwrap();
    wait_for(|| (!is_running(pid.trim())).then_some(()));
}

#[test]
fn a_script_that_is_cut_off_at_the_end_of_the_bridge_has_its_grace() {
    let folder = Folder::new();
    let (pid, mark) = (folder.text("pid"), folder.text("mark"));
    let tidy = format!("trap 'sleep 0.5; echo tidy > {mark}; exit' TERM; echo $$ > {pid}; {PLAIN}");
    folder.script("cgi-bin/script", &format!("{tidy}while :; do sleep 0.1; done"));
    let bridge = folder.serve(&["--shutdown-timeout", "100ms", "--kill-grace", "20s"]);
    let mut client = TcpStream::connect(&bridge.place).unwrap();
    client.write_all(b"GET /script HTTP/1.0\r\n\r\n").unwrap();
    wait_for(|| fs::read_to_string(&pid).ok().filter(|text| text.ends_with('\n')));
    let begun = Instant::now();
    bridge.stop();
    assert_eq!(fs::read_to_string(&mark).unwrap(), "tidy\n");
    assert!(begun.elapsed() < Duration::from_secs(15), "its grace was not waited for to the end");
}

#[test]
fn as_a_script_what_answered_may_work_on_and_the_web_server_does_not_wait_for_it() {
    let folder = Folder::new();
    let mark = folder.text("mark");
    for answer in ["Content-Length: 4\\n\\nfine'", "\\nfine'"] {
        let _ = fs::remove_file(&mark);
        let close = "exec >&- 2>&-; sleep 2; echo done";
        folder.script("cgi-bin/script", &format!("printf 'Content-Type: text/plain\\n{answer}; {close} > {mark}"));
        let mut command = tool(&["bridge", "cgi:", &folder.to()]);
        for (name, value) in [("GATEWAY_INTERFACE", "CGI/1.1"), ("REQUEST_METHOD", "GET"), ("PATH_INFO", "/script")] {
            command.env(name, value);
        }
        for (name, value) in [("SERVER_PROTOCOL", "HTTP/1.1"), ("SERVER_NAME", "a"), ("SERVER_PORT", "80")] {
            command.env(name, value);
        }
        let mut child = command.spawn().unwrap();
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(output.ends_with("\r\n\r\nfine"), "{output}");
        assert!(!folder.path("mark").exists(), "the end of the output came before the end of the script");
        assert!(child.wait().unwrap().success());
        assert_eq!(fs::read_to_string(&mark).unwrap(), "done\n");
    }
}

#[test]
fn what_a_script_leaves_running_is_ended_when_asked_for() {
    let folder = Folder::new();
    let mark = folder.text("pid");
    folder.script(
        "cgi-bin/script",
        &plain(&format!("sleep 300 >/dev/null 2>&1 </dev/null & echo $! > {mark}; echo done")),
    );
    let left = |options: &[&str]| {
        let bridge = folder.serve(options);
        assert_eq!(bridge.body("/script"), "done\n");
        (fs::read_to_string(&mark).unwrap().trim().to_owned(), bridge)
    };
    let (pid, bridge) = left(&["--kill-leftovers"]);
    wait_for(|| (!is_running(&pid)).then_some(()));
    bridge.stop();
    let (pid, bridge) = left(&[]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(is_running(&pid));
    kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    bridge.stop();
}

/// Requests that a script holds, each by a connection, until the file `go` is there.
struct Held {
    folder: Folder,
    bridge: Bridge,
}

impl Held {
    fn new(options: &[&str]) -> Self {
        let folder = Folder::new();
        let go = folder.text("go");
        for name in ["script", "other"] {
            let text = format!(
                "echo x >> {}; while ! [ -e {go} ]; do sleep 0.05; done\n{PLAIN}echo done",
                folder.text("running")
            );
            folder.script(&format!("cgi-bin/{name}"), &text);
        }
        let bridge = folder.serve(options);
        Self { folder, bridge }
    }

    fn begin(&self, name: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.bridge.place).unwrap();
        stream.write_all(format!("GET /{name} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        stream
    }

    fn wait_for_running(&self, count: usize) {
        wait_for(|| fs::read(self.folder.path("running")).ok().filter(|marks| marks.len() == 2 * count));
    }

    fn go(&self) {
        fs::write(self.folder.path("go"), "").unwrap();
    }
}

fn rest(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn scripts_over_the_limit_wait_and_over_the_queue_are_503() {
    for options in
        [&["-c", "1", "--queue", "1"][..], &["--concurrent", "9", "--concurrent-per-script", "1", "--queue", "1"]]
    {
        let held = Held::new(options);
        let first = held.begin("script");
        held.wait_for_running(1);
        // Of two more one waits, whichever is faster, and the other is told at once.
        let (tell, told) = std::sync::mpsc::channel();
        for stream in [held.begin("script"), held.begin("script")] {
            let tell = tell.clone();
            std::thread::spawn(move || tell.send(rest(stream)));
        }
        let refused = told.recv_timeout(SOON).expect("one of them is answered");
        assert_eq!(status(&refused), 503, "{refused}");
        assert!(header(&refused, "Retry-After").is_some(), "{refused}");
        held.go();
        assert!(rest(first).ends_with("done\n"));
        assert!(told.recv_timeout(SOON).expect("the other is answered").ends_with("done\n"));
    }
}

#[test]
fn another_script_is_not_held_up_by_the_limit_of_one() {
    let held = Held::new(&["--concurrent-per-script", "1", "--queue", "0"]);
    let streams = [held.begin("script"), held.begin("other")];
    held.wait_for_running(2);
    held.go();
    for stream in streams {
        assert!(rest(stream).ends_with("done\n"));
    }
}

#[test]
fn waiting_takes_no_longer_than_allowed() {
    let held = Held::new(&["-c", "1", "--queue-wait", "200ms"]);
    let first = held.begin("script");
    held.wait_for_running(1);
    assert_eq!(status(&rest(held.begin("script"))), 503);
    held.go();
    assert!(rest(first).ends_with("done\n"));
}

#[test]
fn scripts_have_the_limits_that_were_named() {
    let folder =
        Folder::of(&plain("grep -E 'cpu time|address space|open files|processes|file size' /proc/self/limits"));
    let limits = [
        "--limit-cpu",
        "7s",
        "--limit-memory",
        "1G",
        "--limit-files",
        "50",
        "--limit-processes",
        "4000",
        "--limit-file-size",
        "3M",
    ];
    let text = folder.serve(&limits).body("/script");
    for (name, value) in [
        ("Max cpu time", "7"),
        ("Max address space", "1073741824"),
        ("Max open files", "50"),
        ("Max processes", "4000"),
        ("Max file size", "3145728"),
    ] {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        assert_eq!(line[name.len()..].split_whitespace().next(), Some(value), "{line}");
    }
}

#[test]
fn files_are_sent_by_name_from_the_folders_that_were_named() {
    let folder = Folder::new();
    fs::create_dir(folder.path("files")).unwrap();
    fs::write(folder.path("files/a"), "the file").unwrap();
    let file = folder.text("files/a");
    folder.script("cgi-bin/sendfile", &format!("printf 'Content-Type: text/x\\nX-Sendfile: {file}\\n\\nnot this'"));
    folder.script("cgi-bin/accel", "printf 'Content-Type: text/x\\nX-Accel-Redirect: /protected/a\\n\\nnot this'");
    let accel = format!("/protected/={}", folder.text("files"));
    let bridge = folder.serve(&["--send-file-root", &folder.text("files"), "--accel-root", &accel]);
    for path in ["/sendfile", "/accel"] {
        let answer = bridge.get(path);
        assert_eq!((status(&answer), &*body(&answer)), (200, "the file"));
        assert_eq!(header(&answer, "content-length"), Some("8"));
        assert!(
            !answer.to_ascii_lowercase().contains("x-sendfile") && !answer.to_ascii_lowercase().contains("x-accel")
        );
        let part = bridge
            .ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nRange: bytes=4-\r\nConnection: close\r\n\r\n"));
        assert_eq!((status(&part), &*body(&part)), (206, "file"));
    }
    fs::remove_file(folder.path("files/a")).unwrap();
    assert_eq!(status(&bridge.get("/sendfile")), 404);
    assert!(bridge.log.line("can't be opened").contains("X-Sendfile names"));
    let answer = folder.serve(&[]).get("/accel");
    assert_eq!((header(&answer, "x-accel-redirect"), &*body(&answer)), (Some("/protected/a"), "not this"));
}

/// What the bridge was started with is not the scripts'.
#[test]
fn scripts_inherit_three_descriptors() {
    let folder = Folder::of(&plain("ls /proc/self/fd | wc -l"));
    let mut command = Command::new("/bin/sh");
    let script = format!("exec 5</etc/passwd 9<&0; exec \"$0\" bridge {PORT} {}", folder.to());
    command.args(["-c", &script, env!("CARGO_BIN_EXE_gatespan")]).stdin(Stdio::null()).stderr(Stdio::piped());
    // The fourth is the folder that ls reads.
    assert_eq!(Bridge::started(command).body("/script").trim(), "4");
}

#[test]
fn a_bridge_that_is_killed_leaves_no_script_running() {
    let folder = Folder::new();
    let mark = folder.text("pid");
    folder.script("cgi-bin/script", &format!("echo $$ > {mark}; {PLAIN}echo begun; sleep 300"));
    let bridge = folder.serve(&[]);
    let mut stream = TcpStream::connect(&bridge.place).unwrap();
    stream.write_all(b"GET /script HTTP/1.0\r\n\r\n").unwrap();
    stream.read_exact(&mut [0; 12]).unwrap();
    let pid = fs::read_to_string(&mark).unwrap();
    assert!(is_running(pid.trim()));
    bridge.signal(Signal::KILL);
    wait_for(|| (!is_running(pid.trim())).then_some(()));
}

/// Whether there is such a process, and it is no zombie.
fn is_running(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn wait_for<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(began.elapsed() < SOON, "it does not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}
