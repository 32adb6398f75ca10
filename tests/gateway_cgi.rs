//! The CGI gateway from the web server's side: this binary starts itself as a CGI script, with descriptors of every kind.

#[path = "support/hosted.rs"]
mod hosted;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use hosted::{Process, command, is_nonblocking, shell};
use rustix::process::Signal;

fn main() -> ExitCode {
    hosted::main(&[
        ("every_kind_of_descriptor_serves_and_none_is_left_non_blocking", every_kind_of_descriptor),
        ("the_answer_begins_with_its_status", the_answer_begins_with_its_status),
        ("no_more_than_content_length_is_read", no_more_than_content_length_is_read),
        ("a_body_that_ends_early_is_400", a_body_that_ends_early_is_400),
        ("a_content_length_that_is_no_number_is_400", a_bad_content_length_is_400),
        ("a_failure_past_the_head_is_a_non_zero_exit", a_failure_past_the_head),
        ("a_closed_reader_is_no_crash", a_closed_reader_is_no_crash),
        ("a_reader_that_leaves_cancels_within_a_second", a_reader_that_leaves_cancels),
        ("sigterm_cancels", sigterm_cancels),
        ("no_thread_is_started", no_thread_is_started),
        ("a_hundred_megabytes_stream_both_ways", a_hundred_megabytes_stream_both_ways),
        ("pieces_arrive_one_by_one", pieces_arrive_one_by_one),
        ("unread_input_is_no_error", unread_input_is_no_error),
    ])
}

fn variables<'a>(path: &'a str, length: &'a str, query: &'a str) -> [(&'a str, &'a str); 6] {
    [
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("REQUEST_METHOD", "POST"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("PATH_INFO", path),
        ("CONTENT_LENGTH", length),
        ("QUERY_STRING", query),
    ]
}

const BODY: &[u8] = b"12345\n";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Pipe,
    Socket,
    File,
    Terminal,
    Null,
}

/// The script's end of a descriptor, and ours.
fn open(kind: Kind) -> (OwnedFd, OwnedFd) {
    match kind {
        Kind::Pipe => unreachable!("pipes have a direction"),
        Kind::Socket => {
            let (one, other) = UnixStream::pair().unwrap();
            (one.into(), other.into())
        }
        Kind::File => {
            let file = tempfile::tempfile().unwrap();
            (file.try_clone().unwrap().into(), file.into())
        }
        Kind::Terminal => {
            use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
            let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
            grantpt(&ours).unwrap();
            unlockpt(&ours).unwrap();
            let name = ptsname(&ours, Vec::new()).unwrap();
            let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
            let theirs = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
            let mut settings = rustix::termios::tcgetattr(&theirs).unwrap();
            settings.make_raw();
            rustix::termios::tcsetattr(&theirs, rustix::termios::OptionalActions::Now, &settings).unwrap();
            (theirs, ours)
        }
        Kind::Null => {
            let null = || File::options().read(true).write(true).open("/dev/null").unwrap().into();
            (null(), null())
        }
    }
}

fn every_kind_of_descriptor() {
    let kinds = [Kind::Pipe, Kind::Socket, Kind::File, Kind::Terminal, Kind::Null];
    for input in kinds {
        for output in kinds {
            let (theirs_in, ours_in): (OwnedFd, OwnedFd) = match input {
                Kind::Pipe => std::io::pipe().map(|(reader, writer)| (reader.into(), writer.into())).unwrap(),
                kind => open(kind),
            };
            let (theirs_out, ours_out): (OwnedFd, OwnedFd) = match output {
                Kind::Pipe => std::io::pipe().map(|(reader, writer)| (writer.into(), reader.into())).unwrap(),
                kind => open(kind),
            };
            let (theirs_err, ours_err) = open(if output == Kind::Pipe { Kind::Socket } else { output });
            let mut ours_in = File::from(ours_in);
            let length = if input == Kind::Null { "" } else { "6" };
            if input != Kind::Null {
                ours_in.write_all(BODY).unwrap();
            }
            if input == Kind::File {
                ours_in.rewind().unwrap();
            }
            let shared = [&theirs_in, &theirs_out, &theirs_err].map(|descriptor| descriptor.try_clone().unwrap());
            let mut script = command(&variables("/echo", length, ""));
            script.stdin(theirs_in).stdout(theirs_out).stderr(theirs_err);
            let mut process = Process::start(script);
            let status = process.end();
            assert!(status.success(), "{input:?} to {output:?}: {status}");
            for (number, descriptor) in shared.iter().enumerate() {
                assert!(!is_nonblocking(descriptor), "{input:?} to {output:?}: descriptor {number}");
            }
            let mut answer = Vec::new();
            let mut ours_out = File::from(ours_out);
            let expected = if input == Kind::Null { &b"\r\n\r\n"[..] } else { b"\r\n\r\n12345\n" };
            if output == Kind::File {
                ours_out.rewind().unwrap();
            }
            if output != Kind::Null {
                let mut block = [0; 1024];
                // A terminal says EIO where others say that it is the end, so no more is read than is expected.
                while !answer.ends_with(expected) {
                    let len = ours_out.read(&mut block).unwrap();
                    assert_ne!(len, 0, "{input:?} to {output:?}: {}", answer.escape_ascii());
                    answer.extend_from_slice(&block[..len]);
                }
                assert!(answer.starts_with(b"Status: 200 OK\r\n"));
            }
            drop((shared, ours_err));
        }
    }
    // A closed descriptor is /dev/null.
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let mut process = Process::start(shell(&format!("exec \"$0\" {closed}"), &variables("/length", "", "")));
        let output = process.output();
        assert!(process.end().success(), "{closed}");
        assert!(closed.contains(" >") || closed.starts_with('>') || output.ends_with(b"\r\n\r\n0 bytes"), "{closed}");
    }
}

fn the_answer_begins_with_its_status() {
    let mut process = Process::start(command(&variables("/", "", "")));
    let output = process.output();
    let expected = "Status: 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nhello by cgi\n";
    assert_eq!(output.escape_ascii().to_string(), expected.as_bytes().escape_ascii().to_string());
    assert!(process.end().success());
}

fn no_more_than_content_length_is_read() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"12345the next request").unwrap();
    file.rewind().unwrap();
    let mut script = command(&variables("/echo", "5", ""));
    // Both share one position.
    script.stdin(file.try_clone().unwrap());
    let mut process = Process::start(script);
    assert!(process.output().ends_with(b"\r\n\r\n12345"));
    assert!(process.end().success());
    let mut rest = String::new();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "the next request");

    let (mut reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"12345the next request").unwrap();
    let mut script = command(&variables("/length", "5", ""));
    script.stdin(reader.try_clone().unwrap());
    let mut process = Process::start(script);
    assert!(process.output().ends_with(b"\r\n\r\n5 bytes"));
    assert!(process.end().success());
    drop((process, writer));
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "the next requestthe next request");
}

fn a_body_that_ends_early_is_400() {
    let mut script = command(&variables("/length", "100", ""));
    script.stdin(Stdio::piped());
    let mut process = Process::start(script);
    process.0.stdin.take().unwrap().write_all(b"only this").unwrap();
    let output = String::from_utf8(process.output()).unwrap();
    assert!(output.starts_with("Status: 400 "), "{output}");
    assert!(process.line().contains("ended after 9 bytes"));
    assert!(process.end().success());
}

fn a_bad_content_length_is_400() {
    for length in ["x", "-1", "99999999999999999999999"] {
        let mut process = Process::start(command(&variables("/length", length, "")));
        assert!(process.output().starts_with(b"Status: 400 "), "{length}");
        assert!(process.line().contains("CONTENT_LENGTH"), "{length}");
        assert!(process.end().success());
    }
}

fn a_failure_past_the_head() {
    let mut process = Process::start(command(&variables("/cut", "", "")));
    assert!(process.output().ends_with(b"\r\n\r\nsome"));
    assert_eq!(process.end().code(), Some(1));
    assert!(process.line().contains("the disk is full"));
}

fn a_closed_reader_is_no_crash() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut script = command(&variables("/large", "", "100"));
    script.stdout(writer);
    let mut process = Process::start(script);
    // Not killed by SIGPIPE: the application's close has run.
    assert_eq!(process.end().code(), Some(1));
    assert!(process.line().contains("could not be written"));
}

fn a_reader_that_leaves_cancels() {
    for over_socket in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let mut script = command(&variables("/wait", "", mark.to_str().unwrap()));
        let (ours, theirs): (OwnedFd, OwnedFd) = if over_socket {
            UnixStream::pair().map(|(one, other)| (one.into(), other.into())).unwrap()
        } else {
            std::io::pipe().map(|(reader, writer)| (reader.into(), writer.into())).unwrap()
        };
        script.stdout(theirs);
        let mut process = Process::start(script);
        wait_for(&mut File::from(ours), b"begun\n");
        let left = Instant::now();
        assert_eq!(process.end().code(), Some(1));
        assert!(left.elapsed() < Duration::from_secs(1));
        assert_eq!(std::fs::read_to_string(mark).unwrap(), "cancelled");
    }
}

/// Reads until it comes.
fn wait_for(reader: &mut impl Read, text: &[u8]) {
    let mut seen = Vec::new();
    let mut block = [0; 1024];
    while !seen.ends_with(text) {
        let len = reader.read(&mut block).unwrap();
        assert_ne!(len, 0, "ended with {}", seen.escape_ascii());
        seen.extend_from_slice(&block[..len]);
    }
}

fn sigterm_cancels() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let mut process = Process::start(command(&variables("/wait", "", mark.to_str().unwrap())));
        wait_for(process.0.stdout.as_mut().unwrap(), b"begun\n");
        process.signal(signal);
        assert_eq!(process.end().code(), Some(1));
        assert_eq!(std::fs::read_to_string(mark).unwrap(), "cancelled");
    }
}

fn no_thread_is_started() {
    let mut script = command(&variables("/threads", "", ""));
    script.stdin(Stdio::piped());
    let mut process = Process::start(script);
    let output = process.output();
    assert!(output.ends_with(b"\r\n\r\n1 threads"), "{}", output.escape_ascii());
    assert!(process.end().success());
}

fn a_hundred_megabytes_stream_both_ways() {
    const LEN: usize = 100_000_000;
    let mut script = command(&variables("/echo", "100000000", ""));
    script.stdin(Stdio::piped());
    let mut process = Process::start(script);
    let mut stdin = process.0.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let block: Vec<u8> = (0..100_000).map(|at| (at % 251) as u8).collect();
        for _ in 0..LEN / block.len() {
            stdin.write_all(&block).unwrap();
        }
    });
    let mut stdout = process.0.stdout.take().unwrap();
    wait_for_head(&mut stdout);
    let mut block = vec![0; 100_000];
    for number in 0..LEN / block.len() {
        stdout.read_exact(&mut block).unwrap();
        assert!(block.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8), "block {number}");
        if number == 990 {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
            let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            let most: usize = most.trim().trim_end_matches(" kB").parse().unwrap();
            assert!(most < 32 * 1024, "{most} KiB");
        }
    }
    assert_eq!(stdout.read(&mut block).unwrap(), 0);
    writer.join().unwrap();
    assert!(process.end().success());
}

fn wait_for_head(reader: &mut impl Read) {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"\r\n\r\n") {
        reader.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
}

fn pieces_arrive_one_by_one() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut script = command(&variables("/echo", "30", ""));
    script.stdin(OwnedFd::from(theirs));
    let mut process = Process::start(script);
    let mut stdout = process.0.stdout.take().unwrap();
    for event in [b"data: 111\n", b"data: 222\n", b"data: 333\n"] {
        ours.write_all(event).unwrap();
        // It would wait for ever if the script waited for more.
        wait_for(&mut stdout, event);
    }
    ours.shutdown(Shutdown::Both).unwrap();
    assert!(process.end().success());
}

fn unread_input_is_no_error() {
    let mut script = command(&variables("/", "5000000", ""));
    script.stdin(Stdio::piped());
    let mut process = Process::start(script);
    let mut stdin = process.0.stdin.take().unwrap();
    // Where the script leaves first that is EPIPE here, which is no error either.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&[0; 5_000_000])));
    assert!(process.output().ends_with(b"hello by cgi\n"));
    assert!(process.end().success());
    writer.join().unwrap();
}
