//! `run`: which gateway a process becomes, by how it is started, and how it ends. This binary starts itself.

#[path = "support/fastcgi_client.rs"]
mod fastcgi_client;
#[path = "support/hosted.rs"]
mod hosted;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fastcgi_client::Client;
use hosted::{Process, command, shell};
use rustix::process::Signal;

fn main() -> ExitCode {
    hosted::main(&[
        ("a_listening_descriptor_0_wins_over_gateway_interface", a_listening_descriptor_0_wins),
        ("listen_fds_are_served_by_their_names", listen_fds_are_served_by_their_names),
        ("listen_fds_for_another_process_are_not_touched", listen_fds_for_another_process),
        ("a_descriptor_of_listen_fds_that_is_no_listener_is_an_error", listen_fds_without_a_listener),
        ("gateway_interface_is_cgi_whatever_the_arguments", gateway_interface_is_cgi),
        ("several_addresses_are_served_at_once", several_addresses_are_served_at_once),
        ("the_environment_names_addresses_where_the_command_line_does_not", the_environment_names_addresses),
        ("without_anything_it_is_http_on_a_printed_address", without_anything_it_is_http),
        ("an_address_that_is_none_is_exit_2_with_a_message", bad_addresses),
        ("help_is_printed", help_is_printed),
        ("sigterm_lets_a_running_request_finish", sigterm_lets_a_running_request_finish),
        ("a_second_signal_ends_at_once", a_second_signal_ends_at_once),
        ("a_stale_socket_is_replaced_and_a_live_one_is_not", a_stale_socket_is_replaced),
    ])
}

/// One request over FastCGI, and its answer.
fn fastcgi(stream: UnixStream, path: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        stream.set_nonblocking(true).unwrap();
        let mut client = Client::new(tokio::net::UnixStream::from_std(stream).unwrap());
        let id = client.get(path, false);
        let answer = client.answer(id).await;
        assert!(answer.is_complete(), "{answer:?}");
        answer.text()
    })
}

/// One request over HTTP, and its answer.
fn http(mut stream: impl Read + Write, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer
}

fn connect(path: &Path) -> UnixStream {
    UnixStream::connect(path).expect("it listens")
}

fn socket(name: &str) -> (tempfile::TempDir, PathBuf, UnixListener) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let listener = UnixListener::bind(&path).unwrap();
    (folder, path, listener)
}

fn stop(mut process: Process) {
    process.signal(Signal::TERM);
    assert_eq!(process.end().code(), Some(0));
}

fn a_listening_descriptor_0_wins() {
    let (_folder, path, listener) = socket("0.sock");
    let mut worker = command(&[("GATEWAY_INTERFACE", "CGI/1.1"), ("CONTENT_LENGTH", "5"), ("PATH_INFO", "/cgi")]);
    worker.stdin(OwnedFd::from(listener));
    let process = Process::start(worker);
    for _ in 0..2 {
        assert!(fastcgi(connect(&path), "/").ends_with("hello by fastcgi\n"));
    }
    stop(process);
    // Not its own to remove.
    assert!(path.exists());
}

fn listen_fds_are_served_by_their_names() {
    const PASS: &str = "LISTEN_PID=$$ exec \"$0\" 3<&0 4<&1 </dev/null >/dev/null";
    for (names, first_is_http, second_is_http) in
        [("http:fastcgi", true, false), ("", false, false), ("other:http", false, true), ("http", true, false)]
    {
        let (_one, first, listener) = socket("1.sock");
        let mut worker =
            shell(PASS, &[("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", names), ("GATEWAY_INTERFACE", "CGI/1.1")]);
        worker.stdin(OwnedFd::from(listener));
        let (_two, second, listener) = socket("2.sock");
        worker.stdout(OwnedFd::from(listener));
        let process = Process::start(worker);
        for (path, is_http) in [(first, first_is_http), (second, second_is_http)] {
            if is_http {
                assert!(http(connect(&path), "/").ends_with("hello by http\n"), "{names}");
            } else {
                assert!(fastcgi(connect(&path), "/").ends_with("hello by fastcgi\n"), "{names}");
            }
        }
        stop(process);
    }
}

fn listen_fds_for_another_process() {
    let (_folder, _path, listener) = socket("1.sock");
    let script = "exec 3<&0; LISTEN_PID=1 exec \"$0\" </dev/null";
    let mut worker = shell(script, &[("LISTEN_FDS", "1"), ("GATEWAY_INTERFACE", "CGI/1.1")]);
    worker.stdin(OwnedFd::from(listener));
    let mut process = Process::start(worker);
    assert!(process.output().ends_with(b"hello by cgi\n"));
    assert!(process.end().success());
    // Nor where the number of them is nonsense.
    let mut worker =
        shell("LISTEN_PID=$$ exec \"$0\" 3<&-", &[("LISTEN_FDS", "2147483647"), ("GATEWAY_INTERFACE", "CGI/1.1")]);
    worker.stdin(std::process::Stdio::null());
    let mut process = Process::start(worker);
    assert!(process.output().ends_with(b"hello by cgi\n"));
    assert!(process.end().success());
}

fn listen_fds_without_a_listener() {
    let mut process = Process::start(shell("LISTEN_PID=$$ exec \"$0\" 3</dev/null", &[("LISTEN_FDS", "1")]));
    assert_eq!(process.end().code(), Some(1));
    let line = process.line();
    assert!(line.contains("descriptor 3") && line.contains("listening stream socket"), "{line}");
}

fn gateway_interface_is_cgi() {
    for argument in ["--help", "http://127.0.0.1:1", "nonsense"] {
        let mut script = command(&[("GATEWAY_INTERFACE", "CGI/1.1"), ("GATESPAN_ADDRESS", "http://127.0.0.1:1")]);
        script.arg(argument);
        let mut process = Process::start(script);
        assert!(process.output().ends_with(b"hello by cgi\n"), "{argument}");
        assert!(process.end().success());
    }
}

fn several_addresses_are_served_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("1.sock"), folder.path().join("2.sock"));
    let mut server = command(&[("GATESPAN_ADDRESS", "nonsense")]);
    server.args([format!("fastcgi:{}", one.display()), format!("http:{}", two.display()), "http://127.0.0.1:0".into()]);
    let mut process = Process::start(server);
    assert_eq!(process.line(), format!("listening on fastcgi:{}\n", one.display()));
    assert_eq!(process.line(), format!("listening on http:{}\n", two.display()));
    let line = process.line();
    let port = line.trim().rsplit(':').next().unwrap();
    assert!(fastcgi(connect(&one), "/").ends_with("hello by fastcgi\n"));
    assert!(http(connect(&two), "/").ends_with("hello by http\n"));
    let tcp = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap();
    assert!(http(tcp, "/").ends_with("hello by http\n"));
    stop(process);
    assert!(!one.exists() && !two.exists());
}

fn the_environment_names_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("1.sock"), folder.path().join("2.sock"));
    let addresses = format!(" fastcgi:{}   http:{} ", one.display(), two.display());
    let mut process = Process::start(command(&[("GATESPAN_ADDRESS", &addresses)]));
    process.line();
    process.line();
    assert!(fastcgi(connect(&one), "/").ends_with("hello by fastcgi\n"));
    assert!(http(connect(&two), "/").ends_with("hello by http\n"));
    stop(process);
}

fn without_anything_it_is_http() {
    // Taken or not, the usual port: another one is found.
    let _taken = TcpListener::bind(("127.0.0.1", gatespan::gateway::DEFAULT_PORT));
    let mut process = Process::start(command(&[]));
    let line = process.line();
    let address = line.strip_prefix("listening on http://").expect("the address").trim();
    assert!(http(TcpStream::connect(address).unwrap(), "/").ends_with("hello by http\n"));
    stop(process);
}

fn bad_addresses() {
    for address in ["nonsense", "gopher://host:1", "http://", "fastcgi://127.0.0.1", "cgi:/bin", "https://host", ""] {
        let mut server = command(&[]);
        server.arg(address);
        let mut process = Process::start(server);
        assert_eq!(process.end().code(), Some(2), "{address}");
        let line = process.line();
        assert!(line.contains("expected"), "{address}: {line}");
    }
    let mut process = Process::start(command(&[("GATESPAN_ADDRESS", "nonsense")]));
    assert_eq!(process.end().code(), Some(2));
    // Understood, but not to be had.
    let mut server = command(&[]);
    server.arg("http:/no/such/folder/a.sock");
    let mut process = Process::start(server);
    assert_eq!(process.end().code(), Some(1));
    assert!(process.line().contains("/no/such/folder/a.sock"));
}

fn help_is_printed() {
    let mut server = command(&[]);
    server.arg("--help");
    let mut process = Process::start(server);
    assert!(process.output().starts_with(b"Usage: "));
    assert!(process.end().success());
}

fn sigterm_lets_a_running_request_finish() {
    for scheme in ["fastcgi", "http"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let mut server = command(&[]);
        server.arg(format!("{scheme}:{}", path.display()));
        let mut process = Process::start(server);
        process.line();
        let stream = connect(&path);
        let asking = std::thread::spawn(move || match scheme {
            "http" => http(stream, "/slow"),
            _ => fastcgi(stream, "/slow"),
        });
        // Long enough to be under way, and shorter than it takes.
        std::thread::sleep(Duration::from_millis(200));
        process.signal(Signal::TERM);
        assert!(asking.join().unwrap().ends_with("slow but done"), "{scheme}");
        assert_eq!(process.end().code(), Some(0));
    }
}

fn a_second_signal_ends_at_once() {
    for (signal, code) in [(Signal::TERM, 128 + 15), (Signal::INT, 128 + 2)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let mut server = command(&[]);
        server.arg(format!("http:{}", path.display()));
        let mut process = Process::start(server);
        process.line();
        let mut stream = connect(&path);
        let mark = folder.path().join("mark");
        write!(stream, "GET /wait?{} HTTP/1.1\r\nHost: localhost\r\n\r\n", mark.display()).unwrap();
        let mut seen = [0; 12];
        stream.read_exact(&mut seen).unwrap();
        process.signal(Signal::TERM);
        std::thread::sleep(Duration::from_millis(200));
        assert!(process.0.try_wait().unwrap().is_none(), "it did not wait for the request");
        let asked = Instant::now();
        process.signal(signal);
        assert_eq!(process.end().code(), Some(code));
        assert!(asked.elapsed() < Duration::from_secs(2));
    }
}

fn a_stale_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    drop(UnixListener::bind(&path).unwrap());
    let address = format!("fastcgi:{}", path.display());
    let start = || {
        let mut server = command(&[]);
        server.arg(&address);
        Process::start(server)
    };
    let mut first = start();
    assert_eq!(first.line(), format!("listening on {address}\n"));
    let mut second = start();
    assert_eq!(second.end().code(), Some(1));
    assert!(second.line().contains("another server answers"));
    assert!(fastcgi(connect(&path), "/").ends_with("hello by fastcgi\n"));
    stop(first);
    assert!(!path.exists());
}
