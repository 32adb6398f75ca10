//! `gatespan tap` between real ends: what passes is what passed before, and the recording has what it should and nothing else.
#![cfg(feature = "cli")]

mod support;
#[path = "support/bridge.rs"]
mod bridge;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use bridge::{Bridge, Log, PORT, SOON, status, tool};
use gatespan::protocol::fastcgi::{
    BeginRequest, EndRequest, ProtocolStatus, RecordType, RequestId, Role, name_value, put_record,
};
use gatespan::recording::{
    Direction, EntryReader, Exchange, Exchanges, InRecords, LogReader, Reader, Seen, Spool, What,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use support::process::{Listening, Scratch, Server, free_address, memory, program};
use support::{Front, table};

const ONE: RequestId = RequestId(1);

/// A folder with a tap in it, between `web.sock` and `app.sock`.
struct Tap {
    bridge: Bridge,
    folder: tempfile::TempDir,
}

impl Tap {
    fn start(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bridge = tap_in(folder.path(), options);
        Self { bridge, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn application(&self) -> UnixListener {
        UnixListener::bind(self.path("app.sock")).unwrap()
    }

    fn web_server(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path("web.sock")).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    fn recording(&self) -> PathBuf {
        self.path("tap.rec")
    }

    /// Stops it, and gives what it has recorded.
    fn stop(self) -> (Vec<What>, Vec<u8>) {
        let (recording, folder) = (self.recording(), self.folder);
        self.bridge.stop();
        let bytes = fs::read(recording).unwrap();
        drop(folder);
        (whats(&bytes), bytes)
    }
}

fn tap_command(folder: &Path, options: &[&str]) -> Command {
    let path = |name: &str| folder.join(name).display().to_string();
    let (from, to) = (format!("fastcgi:{}", path("web.sock")), format!("fastcgi:{}", path("app.sock")));
    let recording = path("tap.rec");
    let output: &[&str] = if options.contains(&"-o") { &[] } else { &["-o", &recording] };
    tool(&[&["tap", &from, &to], output, options].concat())
}

fn tap_in(folder: &Path, options: &[&str]) -> Bridge {
    Bridge::started(tap_command(folder, options))
}

fn seen(bytes: &[u8]) -> Vec<Seen> {
    let mut reader = LogReader::new();
    reader.receive(bytes);
    reader.end();
    std::iter::from_fn(|| reader.next().expect("the recording is whole")).collect()
}

fn whats(bytes: &[u8]) -> Vec<What> {
    seen(bytes).into_iter().map(|seen| seen.what).collect()
}

/// What passed in a direction, a `*` for what was masked.
fn passed(whats: &[What], wanted: Direction) -> Vec<u8> {
    let mut bytes = Vec::new();
    for what in whats {
        match what {
            What::Bytes { direction, bytes: these } if *direction == wanted => bytes.extend_from_slice(these),
            What::Masked { direction, len } if *direction == wanted => bytes.resize(bytes.len() + *len as usize, b'*'),
            What::Gap { direction, .. } => panic!("a gap on the way to {direction}"),
            _ => {}
        }
    }
    bytes
}

fn exchanges(bytes: &[u8]) -> Vec<Exchange> {
    let mut reader = InRecords::new(LogReader::new());
    let mut exchanges = Exchanges::new(Spool::default());
    reader.receive(bytes);
    reader.end();
    while let Some(entry) = reader.next().expect("the recording is whole") {
        exchanges.receive(&entry).unwrap();
    }
    exchanges.end().unwrap();
    std::iter::from_fn(|| exchanges.next()).collect()
}

fn records(records: &[(RecordType, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    records.iter().for_each(|(record_type, content)| put_record(*record_type, ONE, content, 0, &mut bytes));
    bytes
}

fn request(pairs: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut params = Vec::new();
    let usual = [("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/somewhere?x=y")];
    for (name, value) in usual.iter().chain(pairs) {
        name_value::encode(name.as_bytes(), value.as_bytes(), &mut params).unwrap();
    }
    let begin = BeginRequest { role: Role::Responder, keep_connection: true }.encode();
    let mut all =
        records(&[(RecordType::BeginRequest, &begin), (RecordType::Params, &params), (RecordType::Params, b"")]);
    body.chunks(32_000).for_each(|piece| put_record(RecordType::Stdin, ONE, piece, 0, &mut all));
    put_record(RecordType::Stdin, ONE, b"", 0, &mut all);
    all
}

fn answer(content: &[u8]) -> Vec<u8> {
    let end = EndRequest { application_status: 0, protocol_status: ProtocolStatus::RequestComplete }.encode();
    records(&[(RecordType::Stdout, content), (RecordType::Stdout, b""), (RecordType::EndRequest, &end)])
}

fn hello() -> Vec<u8> {
    answer(b"Status: 200 OK\r\nContent-Type: text/plain\r\n\r\nHello, world!\n")
}

/// Takes one connection after the other, reads so many bytes, and answers; as long as there are connections.
fn answering(listener: UnixListener, request_len: usize, answer: Vec<u8>) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), answer.clone());
            std::thread::spawn(move || {
                let mut request = vec![0; request_len];
                while stream.read_exact(&mut request).is_ok() && stream.write_all(&answer).is_ok() {}
            });
        }
    });
}

fn exchange(stream: &mut UnixStream, request: &[u8], answer: &[u8]) {
    stream.write_all(request).unwrap();
    let mut got = vec![0; answer.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, answer);
}

/// Waits until a file's bytes are as wanted, and gives them.
fn wait_for(path: &Path, is_wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let start = Instant::now();
    loop {
        let bytes = fs::read(path).unwrap_or_default();
        if is_wanted(&bytes) {
            return bytes;
        }
        assert!(start.elapsed() < SOON, "{} does not become what is awaited", path.display());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|bytes| bytes == part)
}

fn bytes_of(direction: Direction, what: &What) -> bool {
    matches!(what, What::Bytes { direction: of, .. } if *of == direction)
}

/// nginx in front of a tap in front of the application.
fn front(name: &'static str, fixture: &str, is_unix: bool, is_streamed: bool) -> Front {
    let scratch = Scratch::new();
    let (to, from) = match is_unix {
        true => (Listening::Unix(scratch.path("app.sock")), format!("fastcgi:{}", scratch.path("tap.sock").display())),
        false => (Listening::Tcp(free_address()), format!("fastcgi://{}", free_address())),
    };
    let application = scratch.application(&to, &[]);
    let address_of = |listening: &Listening| match listening {
        Listening::Unix(path) => format!("fastcgi:{}", path.display()),
        Listening::Tcp(address) | Listening::Http(address) => format!("fastcgi://{address}"),
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatespan"));
    command.args(["tap", &from, &address_of(&to), "--socket-mode", "666", "-o"]).arg(scratch.path("tap.rec"));
    let tap = Server::start(&scratch, "tap", command, &[]);
    let (tap, upstream) = match is_unix {
        true => (tap.ready_at(&scratch.path("tap.sock")), from.replace("fastcgi:", "unix:")),
        false => {
            let address = from.trim_start_matches("fastcgi://").to_owned();
            (tap.ready_on(address.parse().unwrap()), address)
        }
    };
    let address = free_address();
    let (port, buffering) = (address.port().to_string(), if is_streamed { "off" } else { "on" });
    let values =
        [("PORT", &*port), ("ADDRESS", &*upstream), ("REQUEST_BUFFERING", buffering), ("BUFFERING", buffering)];
    let configuration = scratch.configuration(fixture, &values);
    let mut command = program("/usr/sbin/nginx", "nginx-light");
    command.arg("-c").arg(configuration).arg("-e").arg("stderr");
    let nginx = Server::start(&scratch, "nginx", command, &[]).ready_on(address);
    Front { name, address, servers: vec![nginx, tap, application], scratch }
}

/// All that nginx and the application do without a tap they do with one, and the recording has it.
async fn passes_everything(front: Front) {
    table::everything(&front).await;
    let Front { servers, scratch, .. } = front;
    drop(servers);
    let bytes = fs::read(scratch.path("tap.rec")).unwrap();
    let all = exchanges(&bytes);
    assert!(all.len() > 20, "{} requests", all.len());
    assert!(all.iter().filter(|exchange| exchange.end.is_some()).count() > 20);
    assert!(all.iter().all(|exchange| exchange.params.iter().count() > 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_and_an_application_on_unix_sockets_notice_no_tap() {
    passes_everything(front("nginx/unix/kept/streamed", "nginx/kept.conf", true, true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_and_an_application_over_tcp_notice_no_tap() {
    passes_everything(front("nginx/tcp/closed/buffered", "nginx/closed.conf", false, false)).await;
}

#[test]
fn php_fpm_answers_nginx_through_a_tap() {
    let scratch = Scratch::new();
    scratch.write("htdocs/app", "<?php setcookie('session', 's3cret'); echo 'PHP says ', $_GET['word'], \"\\n\";");
    let root_only = if rustix::process::getuid().is_root() { "" } else { ";" };
    let configuration = scratch.configuration("php-fpm.conf", &[("ROOT_ONLY", root_only), ("MAX_REQUESTS", "0")]);
    let text = fs::read_to_string(&configuration).unwrap() + "\nsecurity.limit_extensions =\n";
    scratch.write("php-fpm.conf", &text);
    let mut command = program("/usr/sbin/php-fpm8.2", "php8.2-fpm");
    command.args(["--nodaemonize", "--no-php-ini", "--fpm-config"]).arg(scratch.path("php-fpm.conf"));
    let _fpm = Server::start(&scratch, "php-fpm", command, &["php-fpm.log"]).ready_at(&scratch.path("php.sock"));
    let path = |name: &str| scratch.path(name).display().to_string();
    let (from, to) = (format!("fastcgi:{}", path("tap.sock")), format!("fastcgi:{}", path("php.sock")));
    let tap = Bridge::start_as("tap", &[&from, &to, "--socket-mode", "666", "-o", &path("tap.rec")]);
    let address = free_address();
    let port = address.port().to_string();
    let values = [
        ("PORT", &*port),
        ("ADDRESS", &*format!("unix:{}", path("tap.sock"))),
        ("REQUEST_BUFFERING", "on"),
        ("BUFFERING", "on"),
    ];
    let configuration = scratch.configuration("nginx/closed.conf", &values);
    let text = fs::read_to_string(&configuration).unwrap();
    scratch.write(
        "nginx.conf",
        &text.replace("server_name localhost;", &format!("server_name localhost; root {};", path("htdocs"))),
    );
    let mut command = program("/usr/sbin/nginx", "nginx-light");
    command.arg("-c").arg(scratch.path("nginx.conf")).arg("-e").arg("stderr");
    let _nginx = Server::start(&scratch, "nginx", command, &[]).ready_on(address);
    let stream = std::net::TcpStream::connect(address).unwrap();
    let page = bridge::ask(
        stream,
        "GET /app?word=hello HTTP/1.1\r\nHost: localhost\r\nCookie: a=s3cret\r\nConnection: close\r\n\r\n",
    );
    assert!(page.contains("PHP says hello") && page.contains("session=s3cret"), "{page}");
    tap.stop();
    let bytes = fs::read(scratch.path("tap.rec")).unwrap();
    let [exchange] = &exchanges(&bytes)[..] else { panic!("one request") };
    assert_eq!(exchange.params.last(b"QUERY_STRING"), Some(&b"word=hello"[..]));
    assert!(exchange.end.is_some() && !contains(&bytes, b"s3cret") && contains(&bytes, b"Set-Cookie:"));
}

#[test]
fn any_bytes_pass_as_they_are_and_so_do_the_ends_of_both_directions() {
    let garbage: Vec<u8> = (0..300_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut huge = request(&[], b"");
    huge.extend_from_slice(&[1, 4, 0, 1, 0xff, 0xff, 0xff, 0]);
    let streams: [&[u8]; 8] = [
        b"",
        b"\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        &garbage,
        &request(&[], b"body")[..37],
        &huge,
        // A pair whose lengths no record could hold, and a record of a type and version that there is not.
        b"\x01\x04\0\x01\0\x0a\0\0\xff\xff\xff\xff\xff\xff\xff\xffab\x01\xee\0\x01\0\x01\0\0x\x02\x01\0\0",
        &[request(&[], b""), garbage.clone()].concat(),
    ];
    let tap = Tap::start(&["--show", "all"]);
    let application = tap.application();
    for (number, there) in streams.iter().enumerate() {
        let back = streams[streams.len() - 1 - number];
        std::thread::scope(|scope| {
            let answering = scope.spawn(|| {
                let (mut stream, _) = application.accept().unwrap();
                let mut got = Vec::new();
                stream.read_to_end(&mut got).unwrap();
                stream.write_all(back).unwrap();
                got
            });
            let mut stream = tap.web_server();
            stream.write_all(there).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            assert!(got == back, "stream {number}: {} bytes back instead of {}", got.len(), back.len());
            let got = answering.join().unwrap();
            assert!(got == *there, "stream {number}: {} bytes there instead of {}", got.len(), there.len());
        });
    }
    let (whats, _) = tap.stop();
    assert_eq!(passed(&whats, Direction::ToApplication), streams.concat());
    let back: Vec<&[u8]> = streams.iter().rev().copied().collect();
    assert_eq!(passed(&whats, Direction::ToWebServer), back.concat());
    let ends = whats.iter().filter(|what| matches!(what, What::Ended { .. })).count();
    assert_eq!(ends, 2 * streams.len());
}

#[test]
fn both_directions_pass_at_once_in_bounded_memory() {
    const LEN: usize = 24 << 20;
    let tap = Tap::start(&[]);
    let application = tap.application();
    let block = vec![b'x'; 60_000];
    let mut record = Vec::new();
    put_record(RecordType::Stdin, ONE, &block, 0, &mut record);
    let write_all = &|mut stream: &UnixStream| {
        let mut sent = 0;
        while sent < LEN {
            stream.write_all(&record).unwrap();
            sent += record.len();
        }
        stream.shutdown(Shutdown::Write).unwrap();
        sent
    };
    std::thread::scope(|scope| {
        let theirs = scope.spawn(|| {
            let (stream, _) = application.accept().unwrap();
            std::thread::scope(|scope| {
                let sending = scope.spawn(|| write_all(&stream));
                // Not before the web server's side is stuck.
                std::thread::sleep(std::time::Duration::from_millis(300));
                let got = std::io::copy(&mut &stream, &mut std::io::sink()).unwrap();
                (sending.join().unwrap(), got)
            })
        });
        let stream = tap.web_server();
        let copy = stream.try_clone().unwrap();
        let sending = scope.spawn(move || write_all(&copy));
        let got = std::io::copy(&mut &stream, &mut std::io::sink()).unwrap();
        let (sent, theirs) = (sending.join().unwrap(), theirs.join().unwrap());
        assert_eq!((got as usize, theirs.1 as usize), (theirs.0, sent));
    });
    let held = memory(tap.bridge.child.id());
    assert!(held < 64 * 1024, "{held} KiB");
    let (_, bytes) = tap.stop();
    assert!(bytes.len() < LEN / 100, "{} bytes of a recording in which the bodies are masked", bytes.len());
}

#[test]
fn a_web_server_that_leaves_is_gone_for_the_application_too() {
    let tap = Tap::start(&[]);
    let application = tap.application();
    let mut stream = tap.web_server();
    stream.write_all(&request(&[], b"")).unwrap();
    let (mut theirs, _) = application.accept().unwrap();
    theirs.read_exact(&mut vec![0; request(&[], b"").len()]).unwrap();
    drop(stream);
    assert_eq!(theirs.read(&mut [0; 10]).unwrap(), 0);
    // Closed, and not only half: writing says so, once the tap has seen it.
    let start = Instant::now();
    while theirs.write_all(&hello()).is_ok() {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    tap.stop();
}

#[test]
fn an_answer_passes_that_comes_before_the_application_has_read_the_request() {
    let tap = Tap::start(&[]);
    let application = tap.application();
    let mut stream = tap.web_server();
    stream.write_all(&request(&[], b"")).unwrap();
    let (mut theirs, _) = application.accept().unwrap();
    theirs.write_all(&hello()).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    // With the request unread, so that the tap can write no more.
    drop(theirs);
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert_eq!(got, hello());
    drop(stream);
    tap.stop();
}

#[test]
fn an_application_that_is_not_there_is_said_and_recorded() {
    let tap = Tap::start(&[]);
    let mut stream = tap.web_server();
    let _ = stream.write_all(&request(&[], b""));
    assert!(matches!(stream.read(&mut [0; 10]), Ok(0) | Err(_)));
    tap.bridge.log.line("could not be reached");
    let (whats, _) = tap.stop();
    assert!(
        whats.iter().any(|what| matches!(what, What::Broken { reason } if reason.contains("could not be reached")))
    );
}

#[test]
fn secrets_are_in_the_recording_only_if_asked_for() {
    let secrets: [(&str, &[u8]); 5] = [
        ("cookies", b"c00kie-there"),
        ("authorization", b"Basic pa55w0rd"),
        ("bodies", b"b0dy-there"),
        ("cookies", b"c00kie-back"),
        ("bodies", b"b0dy-back"),
    ];
    let request = request(
        &[("HTTP_COOKIE", "id=c00kie-there"), ("HTTP_AUTHORIZATION", "Basic pa55w0rd"), ("HTTP_ACCEPT", "text/plain")],
        b"b0dy-there",
    );
    let answer = answer(b"Status: 200 OK\r\nSet-Cookie: id=c00kie-back; Path=/\r\nX-Other: header\r\n\r\nb0dy-back");
    for shown in ["", "cookies", "authorization", "bodies", "cookies,authorization,bodies"] {
        let options: &[&str] = if shown.is_empty() { &[] } else { &["--show", shown] };
        let tap = Tap::start(options);
        answering(tap.application(), request.len(), answer.clone());
        exchange(&mut tap.web_server(), &request, &answer);
        let (whats, bytes) = tap.stop();
        for (kind, secret) in secrets {
            let is_there = contains(&bytes, secret);
            assert_eq!(is_there, shown.contains(kind), "{} with --show {shown:?}", secret.escape_ascii());
        }
        for kept in ["HTTP_COOKIE", "HTTP_AUTHORIZATION", "text/plain", "Set-Cookie:", "X-Other: header"] {
            assert!(contains(&bytes, kept.as_bytes()), "{kept}");
        }
        // Every record is whole, with marks in it.
        let there = passed(&whats, Direction::ToApplication);
        assert_eq!((there.len(), passed(&whats, Direction::ToWebServer).len()), (request.len(), answer.len()));
        let [exchange] = &exchanges(&bytes)[..] else { panic!("one request") };
        assert_eq!(exchange.params.last(b"HTTP_ACCEPT"), Some(&b"text/plain"[..]));
    }
}

#[test]
fn a_killed_tap_leaves_a_recording_that_can_be_read_and_added_to() {
    let mut tap = Tap::start(&[]);
    let request = request(&[], b"");
    answering(tap.application(), request.len(), hello());
    let mut stream = tap.web_server();
    exchange(&mut stream, &request, &hello());
    // It need not end for that, and no connection need end.
    wait_for(&tap.recording(), |bytes| contains(bytes, b"Content-Type: text/plain"));
    tap.bridge.signal(Signal::KILL);
    tap.bridge.end();
    let before = seen(&fs::read(tap.recording()).unwrap());
    assert!(before.iter().any(|seen| bytes_of(Direction::ToWebServer, &seen.what)));
    assert_eq!(fs::metadata(tap.recording()).unwrap().permissions().mode() & 0o777, 0o600);
    // As it is when a crash comes while something is written.
    let mut file = fs::OpenOptions::new().append(true).open(tap.recording()).unwrap();
    file.write_all(b"\0\0\x10\0\x03\0\0\0torn").unwrap();
    tap.bridge = tap_in(tap.folder.path(), &[]);
    tap.bridge.log.line("is cut off: 12 bytes");
    exchange(&mut tap.web_server(), &request, &hello());
    let recording = tap.recording();
    let (_, bytes) = tap.stop();
    let after = seen(&bytes);
    assert_eq!(after[..before.len()], before, "{}", recording.display());
    let numbers: Vec<u64> =
        after.iter().filter(|seen| matches!(seen.what, What::Opened { .. })).map(|seen| seen.connection.0).collect();
    assert_eq!(numbers, [1, 2]);
    assert_eq!(exchanges(&bytes).len(), 2);
}

#[test]
fn recordings_are_rotated_and_can_be_read_as_one() {
    let tap = Tap::start(&["--rotate", "4K", "--keep", "2", "--show", "all"]);
    let (request, answer) = (request(&[("HTTP_X_LONG", &"x".repeat(800))], b""), hello());
    answering(tap.application(), request.len(), answer.clone());
    let mut stream = tap.web_server();
    let name = |number: &str| tap.path(&format!("tap.rec{number}"));
    let mut count = 0;
    while !name(".2").exists() || count < 20 {
        let before = fs::read(name("")).unwrap();
        exchange(&mut stream, &request, &answer);
        count += 1;
        // Each in a piece of its own: what is written at once is not divided between files.
        wait_for(&name(""), |bytes| !bytes.is_empty() && bytes != before);
        assert!(count < 500);
    }
    drop(stream);
    let paths = [name(".2"), name(".1"), name("")];
    let is_other = name(".3").exists();
    let folder = tap.folder.path().to_owned();
    let Tap { bridge, folder: kept } = tap;
    bridge.stop();
    assert!(!is_other);
    let all: Vec<u8> = paths.iter().flat_map(|path| fs::read(path).unwrap()).collect();
    for path in &paths {
        let len = fs::metadata(path).unwrap().len();
        assert!(len <= 8 * 1024, "{}: {len} bytes", path.display());
        seen(&fs::read(path).unwrap());
    }
    let all = whats(&all);
    let gaps = all.iter().filter(|what| matches!(what, What::Gap { .. })).count();
    // For what was deleted, and nowhere between the files.
    assert!(gaps <= 2, "{gaps}");
    assert!(all.iter().filter(|what| bytes_of(Direction::ToApplication, what)).count() > 3);
    drop((folder, kept));
}

#[test]
fn a_disk_that_is_full_costs_the_recording_and_no_request() {
    let folder = tempfile::tempdir().unwrap();
    // A limit on the size of files is as good as a full disk, and can be lifted.
    let tap = tap_command(folder.path(), &["--show", "all"]);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "trap '' XFSZ; ulimit -S -f 4; exec \"$@\"", "sh"]).arg(tap.get_program()).args(tap.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let tap = Tap { bridge: Bridge::started(command), folder };
    let request = request(&[], &[b'u'; 10_000]);
    answering(tap.application(), request.len(), hello());
    let mut stream = tap.web_server();
    exchange(&mut stream, &request, &hello());
    tap.bridge.log.line("can't be written at present");
    for _ in 0..10 {
        exchange(&mut stream, &request, &hello());
    }
    let pid = Pid::from_child(&tap.bridge.child);
    let maximum = getrlimit(Resource::Fsize).maximum;
    prlimit(Some(pid), Resource::Fsize, Rlimit { current: maximum, maximum }).unwrap();
    let log = tap.bridge.log.clone();
    // It tries again as something passes.
    let goes_again = std::thread::spawn(move || log.line("the recording goes on"));
    let start = Instant::now();
    while !goes_again.is_finished() {
        exchange(&mut stream, &request, &hello());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(start.elapsed() < SOON);
    }
    goes_again.join().unwrap();
    drop(stream);
    let (whats, _) = tap.stop();
    assert!(whats.iter().any(|what| matches!(what, What::Gap { len: Some(10_000..), .. })), "{whats:?}");
    let last = whats.iter().rposition(|what| matches!(what, What::Gap { .. })).unwrap();
    assert!(whats[last..].iter().any(|what| bytes_of(Direction::ToApplication, what)));
}

#[test]
fn what_can_not_be_recorded_from_the_beginning_is_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tap.rec"), "something else\n").unwrap();
    let output = tap_command(folder.path(), &[]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("tap.rec: the recording can't be written: it is no whole recording"), "{errors}");
    let running = tap_in(folder.path(), &["-o", "/dev/null"]);
    drop(running);
}

#[test]
fn lines_are_printed_where_there_is_no_terminal() {
    for is_json in [false, true] {
        let mut tap = Tap::start(if is_json { &["--json"] } else { &[] });
        let output = Log::of(tap.bridge.child.stdout.take().unwrap());
        let request = request(&[("HTTP_COOKIE", "secret")], b"12345");
        answering(tap.application(), request.len(), hello());
        exchange(&mut tap.web_server(), &request, &hello());
        // The second is no request at all.
        let mut stream = tap.web_server();
        stream.write_all(b"HELP").unwrap();
        drop(stream);
        let line = output.line("/somewhere?x=y");
        if is_json {
            let object: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(
                (&object["method"], &object["status"], &object["complete"]),
                (&"GET".into(), &200.into(), &true.into())
            );
            assert_eq!((&object["stdin_bytes"], &object["body_bytes"]), (&5.into(), &14.into()));
            assert_eq!(object["findings"], serde_json::json!([]));
            assert!(object["total_ms"].as_f64().unwrap() >= object["first_byte_ms"].as_f64().unwrap());
        } else {
            assert!(
                line.contains(" 200 GET /somewhere?x=y 5 B in, 14 B out, ") && line.contains("first byte "),
                "{line}"
            );
        }
        output.line("3.3");
        tap.stop();
    }
}

#[test]
fn running_requests_are_finished_and_kept_connections_are_closed_at_the_end() {
    let mut tap = Tap::start(&[]);
    let application = tap.application();
    let request = request(&[], b"");
    let mut kept = tap.web_server();
    let (mut theirs, _) = application.accept().unwrap();
    kept.write_all(&request).unwrap();
    theirs.read_exact(&mut vec![0; request.len()]).unwrap();
    tap.bridge.signal(Signal::TERM);
    tap.bridge.log.line("stopping when");
    // Nobody new is taken on.
    let start = Instant::now();
    while UnixStream::connect(tap.path("web.sock")).is_ok() {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    theirs.write_all(&hello()).unwrap();
    let mut got = vec![0; hello().len()];
    kept.read_exact(&mut got).unwrap();
    assert_eq!(got, hello());
    assert_eq!(kept.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(tap.bridge.end(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once_with_the_recording_whole() {
    let mut tap = Tap::start(&[]);
    let application = tap.application();
    let mut stream = tap.web_server();
    stream.write_all(&request(&[], b"")).unwrap();
    let (mut theirs, _) = application.accept().unwrap();
    theirs.read_exact(&mut [0; 16]).unwrap();
    tap.bridge.signal(Signal::TERM);
    tap.bridge.log.line("stopping when");
    tap.bridge.signal(Signal::TERM);
    assert_eq!(tap.bridge.end(), Some(143));
    assert!(!passed(&whats(&fs::read(tap.recording()).unwrap()), Direction::ToApplication).is_empty());
}

#[test]
fn a_socket_that_is_handed_over_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("web.sock")).unwrap();
    let to = format!("fastcgi:{}", folder.path().join("app.sock").display());
    let recording = folder.path().join("tap.rec").display().to_string();
    let mut command = tool(&["tap", "fastcgi:fd", &to, "-o", &recording]);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    let tap = Tap { bridge: Bridge::started(command), folder };
    let request = request(&[], b"");
    answering(tap.application(), request.len(), hello());
    exchange(&mut tap.web_server(), &request, &hello());
    let (whats, _) = tap.stop();
    assert_eq!(passed(&whats, Direction::ToApplication), request);
}

#[test]
fn a_recording_goes_to_standard_output_as_well() {
    let mut tap = Tap::start(&["-o", "-"]);
    let mut output = tap.bridge.child.stdout.take().unwrap();
    let request = request(&[], b"");
    answering(tap.application(), request.len(), hello());
    exchange(&mut tap.web_server(), &request, &hello());
    tap.bridge.stop();
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes).unwrap();
    assert_eq!(passed(&whats(&bytes), Direction::ToApplication), request);
}

#[test]
fn http_is_recorded_as_fastcgi_would_have_carried_it() {
    let folder = tempfile::tempdir().unwrap();
    let recording = folder.path().join("tap.rec").display().to_string();
    let tap = Bridge::start_as("tap", &[PORT, "app:echo", "-o", &recording, "--show", "bodies"]);
    let body = "some text\n".repeat(20_000);
    let len = body.len();
    let posted = tap.ask(&format!(
        "POST /a?b=c HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len}\r\nCookie: s3cret\r\nConnection: close\r\n\r\n{body}"
    ));
    assert_eq!(status(&posted), 200);
    assert_eq!(bridge::body(&posted), body);
    assert_eq!(status(&tap.get("/nothing")), 200);
    tap.stop();
    let bytes = fs::read(&recording).unwrap();
    let [post, get] = &exchanges(&bytes)[..] else { panic!("two requests") };
    assert_eq!(post.params.last(b"REQUEST_METHOD"), Some(&b"POST"[..]));
    assert_eq!(post.params.last(b"QUERY_STRING"), Some(&b"b=c"[..]));
    assert_eq!(post.stdin.first(1 << 20).unwrap(), body.as_bytes());
    let stdout = post.stdout.first(1 << 20).unwrap();
    assert!(stdout.starts_with(b"Status: 200") && stdout.ends_with(body.as_bytes()));
    assert!(post.end.is_some() && get.end.is_some() && get.stdin.is_empty());
    assert!(!contains(&bytes, b"s3cret"));
    assert_eq!(post.connection.0, 1);
}

#[test]
fn http_in_front_of_a_script_and_of_nothing_is_recorded_with_what_the_client_sees() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    fs::write(
        &script,
        "#!/bin/sh\necho Status: 404 Gone Missing\necho Content-Type: text/plain\necho\necho told >&2\ncat\n",
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let recording = folder.path().join("tap.rec").display().to_string();
    let nowhere = format!("fastcgi:{}", folder.path().join("nobody.sock").display());
    let mut taps = Vec::new();
    for to in [format!("cgi:{}", script.display()), nowhere] {
        let tap = Bridge::start_as("tap", &[PORT, &to, "-o", &recording]);
        taps.push(status(&tap.get("/")));
        tap.stop();
    }
    assert_eq!(taps, [404, 502]);
    let bytes = fs::read(&recording).unwrap();
    let [script, nothing] = &exchanges(&bytes)[..] else { panic!("two requests") };
    assert!(script.stdout.first(100).unwrap().starts_with(b"Status: 404 Gone Missing\r\n"));
    assert!(nothing.stdout.first(100).unwrap().starts_with(b"Status: 502"));
}

#[test]
fn what_makes_no_sense_is_exit_code_2() {
    for (words, part) in [
        (&["tap", "cgi:", "fastcgi:/nowhere"][..], "gatespan bridge cgi: fastcgi:/run/tap.sock"),
        (&["tap", "fastcgi:/a", "fastcgi:fd"], "expected where requests go"),
        (&["tap", "fastcgi:/a", "fastcgi:/b", "--show", "everything"], "--show"),
        (&["tap", "fastcgi:/a", "fastcgi:/b", "--", "--nonsense"], "--nonsense"),
        (&["tap", "fastcgi:/a", "fastcgi:/b", "--rotate", "much"], "expected a size"),
        (&["tap", "fastcgi:/a", "fastcgi:/b", "--", "--isindex"], "--isindex"),
    ] {
        let output = tool(words).current_dir(std::env::temp_dir()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {errors}");
        assert!(errors.contains(part), "{errors}");
    }
}

/// A terminal with a tap in it.
struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    fn start(folder: &Path, size: (u16, u16), command: &Command) -> Self {
        let terminal = Self { socket: folder.join("tmux.sock") };
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| format!("'{}'", word.to_str().unwrap()))
            .collect();
        let (width, height) = (size.0.to_string(), size.1.to_string());
        // What is left on the terminal afterwards is to be seen.
        let line = format!("{}; echo ended with $?; exec cat", words.join(" "));
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height, &line]);
        terminal
    }

    fn tmux(&self, words: &[&str]) -> String {
        let mut command = program("/usr/bin/tmux", "tmux");
        command
            .arg("-S")
            .arg(&self.socket)
            .args(words)
            .env_remove("TMUX")
            .env("TERM", "xterm-256color")
            .env("LC_ALL", "C.UTF-8");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The screen once it is as wanted.
    fn shows(&self, what: &str, is_wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let screen = self.screen();
            if is_wanted(&screen) {
                return screen;
            }
            assert!(start.elapsed() < SOON, "{what} is awaited:\n{screen}");
            std::thread::sleep(std::time::Duration::from_millis(30));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.screen());
        }
        let _ = Command::new("/usr/bin/tmux").arg("-S").arg(&self.socket).arg("kill-server").output();
    }
}

/// One line for each request that the view lists.
fn listed(screen: &str) -> Vec<&str> {
    screen.lines().filter(|line| line.contains("GET") && line.contains("/somewhere")).collect()
}

#[test]
fn the_view_lists_opens_filters_and_pauses_and_leaves_the_terminal_as_it_was() {
    for size in [(80, 24), (132, 43)] {
        let folder = tempfile::tempdir().unwrap();
        let terminal = Terminal::start(folder.path(), size, &tap_command(folder.path(), &[]));
        terminal.shows("an empty list", |screen| screen.contains("No request has come yet"));
        let application = UnixListener::bind(folder.path().join("app.sock")).unwrap();
        let web_server = || UnixStream::connect(folder.path().join("web.sock")).unwrap();
        let request = request(&[("HTTP_COOKIE", "s3cret"), ("HTTP_HOST", "example.org")], b"");
        // One that stays open, and one that is answered.
        let mut stays = web_server();
        stays.write_all(&request).unwrap();
        let (_held, _) = application.accept().unwrap();
        answering(application, request.len(), hello());
        let mut stream = web_server();
        exchange(&mut stream, &request, &hello());
        let screen = terminal.shows("two requests", |screen| listed(screen).len() == 2 && screen.contains(" 200 "));
        let width = usize::from(size.0);
        assert!(screen.lines().all(|line| line.chars().count() <= width), "{screen}");
        assert!(
            screen.contains("1 running, 1 over") && screen.contains("BEGUN") && screen.contains("TOTAL"),
            "{screen}"
        );
        // Those that run are on top.
        assert!(listed(&screen)[1].contains(" 200 ") && !listed(&screen)[0].contains(" 200 "), "{screen}");
        terminal.press(&["Down", "Down", "Enter"]);
        let screen = terminal.shows("a request", |screen| screen.contains("Response head"));
        for part in ["HTTP_HOST = example.org", "HTTP_COOKIE = ******", "Status: 200 OK", "first byte"] {
            assert!(screen.contains(part), "{part} in\n{screen}");
        }
        terminal.press(&["End"]);
        terminal.shows("the body", |screen| screen.contains("masked: --show bodies"));
        terminal.press(&["q"]);
        terminal.shows("the list", |screen| screen.contains("BEGUN"));
        terminal.press(&["/", "4", "0", "4", "Enter"]);
        terminal.shows("nothing", |screen| listed(screen).is_empty() && screen.contains("filter: 404"));
        terminal.press(&["Escape"]);
        terminal.shows("all again", |screen| listed(screen).len() == 2);
        terminal.press(&["Space"]);
        terminal.shows("a pause", |screen| screen.contains("PAUSED"));
        exchange(&mut stream, &request, &hello());
        terminal.shows("what passes meanwhile", |screen| screen.contains("2 over") && listed(screen).len() == 2);
        terminal.press(&["Space"]);
        terminal.shows("all", |screen| listed(screen).len() == 3);
        terminal.press(&["?"]);
        terminal.shows("help", |screen| screen.contains("up to the last variable"));
        terminal.press(&["q"]);
        terminal.press(&["C-c"]);
        terminal.shows("that it waits", |screen| screen.contains("stopping when the running requests are finished"));
        drop((stays, stream));
        let screen = terminal.shows("the end", |screen| screen.contains("ended with 0"));
        assert!(!screen.contains("BEGUN") && screen.contains("serving fastcgi:"), "{screen}");
        let modes = terminal.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
        assert_eq!(modes.trim(), "0 1");
    }
}

#[test]
fn a_second_ctrl_c_ends_the_view_at_once_and_gives_the_terminal_back() {
    let folder = tempfile::tempdir().unwrap();
    let terminal = Terminal::start(folder.path(), (80, 24), &tap_command(folder.path(), &[]));
    terminal.shows("a list", |screen| screen.contains("No request has come yet"));
    let application = UnixListener::bind(folder.path().join("app.sock")).unwrap();
    let mut stream = UnixStream::connect(folder.path().join("web.sock")).unwrap();
    stream.write_all(&request(&[], b"")).unwrap();
    let (_held, _) = application.accept().unwrap();
    terminal.shows("a request", |screen| listed(screen).len() == 1);
    terminal.press(&["C-c"]);
    terminal.shows("that it waits", |screen| screen.contains("stopping when"));
    terminal.press(&["C-c"]);
    let screen = terminal.shows("the end", |screen| screen.contains("ended with 130"));
    assert!(!screen.contains("BEGUN"), "{screen}");
    assert_eq!(terminal.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]).trim(), "0 1");
    assert!(!passed(&whats(&fs::read(folder.path().join("tap.rec")).unwrap()), Direction::ToApplication).is_empty());
}
