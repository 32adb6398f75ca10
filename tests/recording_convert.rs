//! `gatespan convert` and `gatespan decode`, from outside: what they print, how they end, and that they stay small.
#![cfg(feature = "cli")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use gatespan::protocol::fastcgi::name_value::encode;
use gatespan::protocol::fastcgi::{RequestId, put_record};

fn gatespan() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatespan"));
    command.stdin(Stdio::null()).env_remove("NO_COLOR");
    command
}

/// A run with this standard input.
fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child =
        gatespan().args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut pipe, input) = (child.stdin.take().unwrap(), input.to_vec());
    let writer = thread::spawn(move || {
        // Who has seen enough does not read to the end.
        let _ = pipe.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// Standard output of a run that has to go well.
fn output(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let output = run(arguments, input);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{arguments:?}: {} {errors}", output.status);
    output.stdout
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn records(list: &[(u8, u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (record_type, id, content) in list {
        put_record((*record_type).into(), RequestId(*id), content, 1, &mut bytes);
    }
    bytes
}

fn params() -> Vec<u8> {
    let mut params = Vec::new();
    for (name, value) in [
        ("REQUEST_METHOD", "POST"),
        ("REQUEST_URI", "/app?a=1"),
        ("HTTP_HOST", "localhost"),
        ("CONTENT_LENGTH", "4"),
        ("SCRIPT_FILENAME", "/bin/cat"),
    ] {
        encode(name.as_bytes(), value.as_bytes(), &mut params).unwrap();
    }
    params
}

const BEGIN: &[u8] = &[0, 1, 1, 0, 0, 0, 0, 0];

const ANSWER: &[u8] = b"Content-Type: text/plain\r\n\r\nhello\n";

/// A good request and a bad one, with something in between that is no record.
fn recording() -> (Vec<u8>, Vec<u8>) {
    let params = params();
    let good = records(&[
        (1, 1, BEGIN),
        (4, 1, &params),
        (4, 1, b""),
        (5, 1, b"body"),
        (5, 1, b""),
        (6, 1, ANSWER),
        (6, 1, b""),
        (3, 1, &[0; 8]),
    ]);
    let bad = records(&[(1, 1, BEGIN), (7, 1, b"\x1b[31moh\n"), (3, 1, &[0; 8])]);
    let all = [&good[..], b"garbage", &bad, &records(&[(5, 1, b"cut")])[..9]].concat();
    (good, all)
}

#[test]
fn a_table_looks_like_this() {
    let (_, recording) = recording();
    let table = String::from_utf8(output(&["decode"], &recording)).unwrap();
    let expected = "   OFFSET            TIME CONN  REQ    TYPE                 ID LENGTH PAD MEANING
        0               -    1    1 -> BEGIN_REQUEST         1      8   1 Responder, keep the connection
       17               -    1    1 -> PARAMS                1    103   1 REQUEST_METHOD=POST, REQUEST_URI=/app?a=1, HTTP_HOST=localhost, CONTENT_LENGTH=4, SCRIPT_FILENAME=/bin/cat
      129               -    1    1 -> PARAMS                1      0   1 end of the variables: 5 in 103 bytes
      138               -    1    1 -> STDIN                 1      4   1 \"body\"
      151               -    1    1 -> STDIN                 1      0   1 end of the request body: 4 bytes
      160               -    1    1 <- STDOUT                1     34   1 200 OK, Content-Type: text/plain, \"hello\\n\"
      203               -    1    1 <- STDOUT                1      0   1 end of the answer: 34 bytes
      212               -    1    1 <- END_REQUEST           1      8   1 complete, application status 0
          = request 1: POST /app?a=1: status 200, 4 bytes in, 34 out
      229               -    1    - <- (garbage)                    7     no record: \"garbage\"
          ! FastCGI 3.3: expected a record of FastCGI version 1, got one of version 103
      236               -    1    2 -> BEGIN_REQUEST         1      8   1 Responder, keep the connection
      253               -    1    2 <- STDERR                1      8   1 \"\\x1b[31moh\\n\"
      270               -    1    2 <- END_REQUEST           1      8   1 complete, application status 0
          ! FastCGI 6.1: expected STDOUT before END_REQUEST, even if it is empty
          ! FastCGI 3.3: expected the end of STDERR before END_REQUEST
          = request 2: (no method) : no answer, 0 bytes in, 0 out, 8 of errors, 2 findings
      287               -    1    - -> (cut)                        9     9 bytes of a record that was not completed: \"\\x01\\x05\\x00\\x01\\x00\\x03\\x01\\x00c\"
          ! FastCGI 3.3: expected 12 bytes of a record, got 9
13 entries, 2 requests, 4 findings
";
    assert_eq!(table, expected);
}

#[test]
fn one_request_its_bytes_and_colours_are_shown_when_asked_for() {
    let (_, recording) = recording();
    let table = String::from_utf8(output(&["decode", "--request", "2", "--hex"], &recording)).unwrap();
    assert!(!table.contains("POST") && table.contains("= request 2"), "{table}");
    assert!(
        table.contains("00000000  01 07 00 01 00 08 01 00  1b 5b 33 31 6d 6f 68 0a  |.........[31moh.|"),
        "{table}"
    );
    assert!(!table.contains('\u{1b}'));
    let coloured = String::from_utf8(output(&["decode", "--color", "always"], &recording)).unwrap();
    assert!(coloured.contains("\u{1b}[31m          ! FastCGI 3.3"), "{coloured}");
    assert!(!coloured.contains("\u{1b}[31moh"), "what was recorded commands no terminal");
}

#[test]
fn lines_for_programs_say_what_is_found_and_can_be_converted() {
    let (_, recording) = recording();
    let lines = output(&["decode", "--json"], &recording);
    let values: Vec<serde_json::Value> =
        lines.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect();
    assert_eq!(values.len(), 13 + 2);
    assert_eq!(
        (&values[1]["type"], &values[1]["request"], &values[1]["offset"]),
        (&"PARAMS".into(), &1.into(), &17.into())
    );
    let end = values.iter().filter(|value| value["type"] == "END_REQUEST").nth(1).unwrap();
    assert_eq!(end["findings"][0]["clause"], "6.1");
    let summaries: Vec<_> = values.iter().filter(|value| value["event"] == "summary").collect();
    assert_eq!(
        (&summaries[0]["status"], &summaries[0]["target"], summaries.len()),
        (&200.into(), &"/app?a=1".into(), 2)
    );
    let again = run(&["convert", "--to", "fastcgi"], &lines);
    assert!(again.stdout == recording);
}

#[test]
fn what_is_found_fails_only_when_asked_for() {
    let (good, bad) = recording();
    output(&["decode", "--strict"], &good);
    let strict = run(&["decode", "--strict"], &bad);
    assert_eq!(strict.status.code(), Some(1));
    assert_eq!(errors(&strict), "gatespan: expected nothing that breaks the specification, got 4 findings\n");
    output(&["decode"], &bad);
    output(&["decode"], b"");
}

#[test]
fn records_are_the_same_after_json_and_what_is_broken_is_said() {
    let (good, bad) = recording();
    let lines = output(&["convert", "--to", "json"], &good);
    assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), 8);
    assert!(output(&["convert", "--to", "fastcgi"], &lines) == good);
    let broken = run(&["convert", "--to", "json"], &bad);
    assert_eq!(broken.status.code(), Some(1));
    let expected = "\
gatespan: standard input: at byte 229: expected a record of FastCGI version 1, got one of version 103
gatespan: standard input: at byte 287: expected 12 bytes of a record, got 9
gatespan: standard input: 2 places are broken, and what could be read is converted
";
    assert_eq!(errors(&broken), expected);
    assert!(run(&["convert", "--to", "fastcgi"], &broken.stdout).stdout == bad);
}

#[test]
fn a_broken_file_is_said_with_its_place_and_what_stands_before_is_converted() {
    let (good, _) = recording();
    let mut lines = output(&["convert", "--to", "json"], &good);
    lines.extend(b"{\"v\":1,\"connection\":1,\"to\":\"nobody\",\"type\":\"STDIN\",\"id\":1}\n");
    let len = lines.len() - 60;
    let broken = run(&["convert", "--to", "fastcgi", "-"], &lines);
    assert_eq!(broken.status.code(), Some(1));
    assert!(broken.stdout == good);
    let message = errors(&broken);
    let expected = "in the field \"to\" \"application\" or \"web server\", got \"\\\"nobody\\\"\"";
    assert!(message.contains("gatespan: standard input: at byte "), "{message} {len}");
    assert!(message.contains(expected), "{message}");
    let unknown = run(&["decode"], b"\0\0");
    assert_eq!(unknown.status.code(), Some(1));
    assert!(errors(&unknown).contains("--from names the form of what does not look like it"), "{}", errors(&unknown));
}

#[test]
fn each_form_is_written_and_read_again() {
    let (good, _) = recording();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("records"), &good).unwrap();
    let http = output(&["convert", "--to", "http", &path("records")], b"");
    assert!(http.starts_with(b"POST /app?a=1 HTTP/1.1\r\nHost: localhost\r\n"), "{}", http.escape_ascii());
    let from_http = output(&["convert", "--to", "fastcgi"], &http);
    assert!(output(&["convert", "--to", "http"], &from_http) == http);

    output(&["convert", "--to", "cgi", "-o", &path("requests"), &path("records")], b"");
    let ran = Command::new(folder.path().join("requests/000001/run")).output().unwrap();
    assert_eq!(ran.stdout, b"body");
    let from_cgi = output(&["convert", "--to", "fastcgi", &path("requests")], b"");
    output(&["convert", "--to", "cgi", "-o", &path("again")], &from_cgi);
    assert!(output(&["convert", "--to", "fastcgi", &path("again")], b"") == from_cgi);

    let curl = String::from_utf8(output(&["convert", "--to", "curl", &path("records")], b"")).unwrap();
    assert!(curl.starts_with("curl ") && curl.ends_with("'http://localhost/app?a=1'\n"), "{curl}");
    let har = output(&["convert", "--to", "har", &path("records"), &path("records")], b"");
    let har: serde_json::Value = serde_json::from_slice(&har).unwrap();
    assert_eq!(har["log"]["entries"].as_array().unwrap().len(), 2);
    assert_eq!(har["log"]["entries"][1]["connection"], "2");
    // What a table shows of exchanges is the records that they would be.
    let table = String::from_utf8(output(&["decode", "--from", "http"], &http)).unwrap();
    assert!(table.ends_with("1 request, 0 findings\n"), "{table}");
}

#[test]
fn several_files_are_told_apart_and_one_connection_can_be_picked() {
    let (good, _) = recording();
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<PathBuf> = ["a", "b"].iter().map(|name| folder.path().join(name)).collect();
    files.iter().for_each(|file| fs::write(file, &good).unwrap());
    let files: Vec<&str> = files.iter().map(|file| file.to_str().unwrap()).collect();
    let lines = output(&["convert", "--to", "json", files[0], files[1]], b"");
    assert!(output(&["convert", "--to", "fastcgi", "--connection", "2"], &lines) == good);
    let both = run(&["convert", "--to", "fastcgi"], &lines);
    assert!(both.status.success() && both.stdout == [&good[..], &good].concat());
    assert!(errors(&both).contains("--connection picks one"), "{}", errors(&both));
    let missing = run(&["convert", "--to", "fastcgi", files[0], "/no/such/file", files[1]], b"");
    assert_eq!(missing.status.code(), Some(1));
    assert!(missing.stdout == [&good[..], &good].concat());
    assert!(errors(&missing).contains("gatespan: /no/such/file: No such file or directory"), "{}", errors(&missing));
}

#[test]
fn an_output_that_would_harm_is_refused() {
    let (good, _) = recording();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records");
    fs::write(&file, &good).unwrap();
    let name = file.to_str().unwrap();
    let onto_itself = run(&["convert", "--to", "json", "-o", name, name], b"");
    assert_eq!(onto_itself.status.code(), Some(1));
    assert!(errors(&onto_itself).contains("expected another file than the one that is read"));
    assert!(fs::read(&file).unwrap() == good);
    let no_folder = run(&["convert", "--to", "cgi", name], b"");
    assert!(errors(&no_folder).contains("expected --output with a folder for --to cgi"));
    let not_empty = run(&["convert", "--to", "cgi", "-o", folder.path().to_str().unwrap(), name], b"");
    assert!(errors(&not_empty).contains("expected a folder that is empty, or none"));
}

#[test]
fn who_has_seen_enough_ends_it_quietly() {
    let (good, _) = recording();
    let input = good.repeat(2000);
    for arguments in [&["decode"][..], &["decode", "--json"], &["convert", "--to", "json"], &["convert", "--to", "har"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = gatespan();
        let mut child =
            command.args(arguments).stdin(Stdio::piped()).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(&input);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), errors(&output)), (Some(0), String::new()), "{arguments:?}");
    }
}

#[test]
fn a_file_is_followed_as_it_grows_until_it_is_interrupted() {
    let (good, _) = recording();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("growing");
    let mut file = fs::File::create(&path).unwrap();
    let mut child =
        gatespan().args(["decode", "--follow", "--json"]).arg(&path).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    file.write_all(&good[..30]).unwrap();
    assert!(next().contains("BEGIN_REQUEST"));
    file.write_all(&good[30..]).unwrap();
    let rest: Vec<String> = (0..8).map(|_| next()).collect();
    assert!(rest[7].contains("\"event\":\"summary\""), "{rest:?}");
    // After a rotation it goes on with the new file.
    fs::rename(&path, folder.path().join("before")).unwrap();
    fs::write(&path, &good).unwrap();
    assert!(next().contains("\"connection\":2"));
    let interrupt = rustix::process::Signal::INT;
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), interrupt).unwrap();
    let mut rest = String::new();
    for line in lines {
        rest.push_str(&line.unwrap());
    }
    assert_eq!(child.wait().unwrap().code(), Some(0), "{rest}");
}

/// The most memory that a process has had, in bytes.
fn peak_memory(child: &std::process::Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() * 1024
}

/// A recording that is much larger than what may be held of it, with requests that never end.
#[test]
fn memory_is_bounded_whatever_the_size() {
    const SIZE: usize = 48 * 1024 * 1024;
    const LIMIT: u64 = 40 * 1024 * 1024;
    for (arguments, expected) in [
        (&["convert", "--to", "json"][..], SIZE),
        (&["convert", "--to", "har", "--memory", "4000000"], SIZE),
        (&["decode"], 1000),
    ] {
        let mut child = gatespan()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let writer = thread::spawn(move || {
            let mut written = 0;
            let mut begin = Vec::new();
            (1..100).for_each(|id| {
                put_record(1.into(), RequestId(id), BEGIN, 0, &mut begin);
                put_record(6.into(), RequestId(id), b"Content-Type: text/plain\n\n", 0, &mut begin);
            });
            pipe.write_all(&begin).unwrap();
            let mut piece = Vec::new();
            (1..16).for_each(|id| put_record(6.into(), RequestId(id), &[b'x'; 60_000], 0, &mut piece));
            while written < SIZE {
                pipe.write_all(&piece).unwrap();
                written += piece.len();
            }
        });
        let mut out = child.stdout.take().unwrap();
        // The most that it has had stays known, so that a look now and then is enough.
        let (mut buffer, mut read, mut peak, mut looked) = (vec![0; 1 << 16], 0, peak_memory(&child), 0);
        loop {
            match out.read(&mut buffer).unwrap() {
                0 => break,
                len => read += len,
            }
            if read >= looked + (1 << 16) || peak == 0 {
                (peak, looked) = (peak.max(peak_memory(&child)), read);
            }
        }
        writer.join().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{arguments:?}");
        assert!(read >= expected, "{arguments:?}: {read} bytes");
        assert!(peak > 0 && peak < LIMIT, "{arguments:?}: {peak} bytes");
    }
}

#[test]
fn every_capture_cut_anywhere_converts_what_is_whole() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/captures");
    let capture = fs::read(folder.join("nginx-plain.pcap")).unwrap();
    let whole = String::from_utf8(output(&["convert", "--to", "json"], &capture)).unwrap();
    for cut in (24..capture.len()).step_by(97) {
        let cut = run(&["convert", "--to", "json"], &capture[..cut]);
        assert!(matches!(cut.status.code(), Some(0 | 1)), "{:?}", cut.status);
        let text = String::from_utf8(cut.stdout).unwrap();
        let records = text.lines().filter(|line| line.contains("\"type\":"));
        assert!(records.into_iter().all(|line| whole.contains(line)), "{text}");
    }
}

#[test]
fn the_help_of_both_is_this() {
    let decode = String::from_utf8(output(&["decode", "-h"], b"")).unwrap();
    assert!(
        decode.starts_with(
            "Show what passed between web servers and applications, record by record\n\n\
             Usage: gatespan decode [OPTIONS] [FILE]...\n"
        ),
        "{decode}"
    );
    for option in ["--from <FORM>", "--direction <TO>", "--request <NUMBER>", "--hex", "--follow", "--json", "--strict"]
    {
        assert!(decode.contains(option), "{option} is not in {decode}");
    }
    let convert = String::from_utf8(output(&["convert", "-h"], b"")).unwrap();
    assert!(
        convert.starts_with(
            "Convert what passed between web servers and applications from one form into another\n\n\
             Usage: gatespan convert [OPTIONS] --to <FORM> [FILE]...\n"
        ),
        "{convert}"
    );
    for form in ["fastcgi", "json", "cgi", "http", "curl", "har", "pcapng", "tap"] {
        assert!(convert.contains(form), "{form} is not in {convert}");
    }
    for help in [decode, convert] {
        assert!(help.contains("Examples:\n") && help.contains("Exit codes:\n"), "{help}");
    }
}

#[test]
fn a_pipe_that_says_nothing_is_followed_until_it_is_interrupted() {
    let (good, _) = recording();
    let mut child = gatespan()
        .args(["decode", "--follow"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // Too little to recognise it by, and then the rest.
    pipe.write_all(&good[..1]).unwrap();
    pipe.write_all(&good[1..]).unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut table = String::new();
    while !table.contains("= request 1") {
        assert!(out.read_line(&mut table).unwrap() > 0, "{table}");
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    out.read_to_string(&mut table).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(table.ends_with("8 entries, 1 request, 0 findings\n"), "{table}");
    drop(pipe);
}

/// A recording as `gatespan tap` writes it, of one good request whose body was masked; in two files of one run.
fn tapped() -> [Vec<u8>; 2] {
    use gatespan::recording::{ConnectionId, Direction, Timestamp, What, log};
    let (good, _) = recording();
    let (to, back) = (Direction::ToApplication, Direction::ToWebServer);
    let answer = good.len() - 17 - 9 - 43;
    let body = 138 + 8;
    let bytes =
        |direction, range: std::ops::Range<usize>| What::Bytes { direction, bytes: good[range].to_vec().into() };
    let first = [
        What::Opened { from: "unix:".into(), to: "/run/app.sock".into() },
        bytes(to, 0..body),
        What::Masked { direction: to, len: 4 },
        bytes(to, body + 4..answer),
    ];
    let second = [bytes(back, answer..good.len()), What::Ended { direction: back }, What::Ended { direction: to }];
    let mut time = 1_700_000_000_000_000_000;
    let mut file = |number, all: &[What]| {
        let mut out = log::HEADER.to_vec();
        log::put_begun(7, number, "a test", None, &mut out);
        if number > 1 {
            let passed = (answer as u64, 0);
            log::put_continued(("unix:", "/run/app.sock"), passed, None, ConnectionId(1), &mut out).unwrap();
        }
        for what in all {
            time += 1_000_000;
            log::put(what, Some(Timestamp(time)), ConnectionId(1), &mut out).unwrap();
        }
        out
    };
    [file(1, &first), file(2, &second)]
}

#[test]
fn recordings_of_the_tap_are_read_rotated_ones_as_one() {
    let [first, second] = tapped();
    let table = String::from_utf8(output(&["decode"], &[&first[..], &second].concat())).unwrap();
    for expected in [
        "(opened)                           connection opened from unix: to /run/app.sock",
        "\"****\", masked",
        "22:13:20.002000",
        "= request 1: POST /app?a=1: status 200, 4 bytes in, 34 out, first byte after 3.000 ms, 3.000 ms in all\n",
        "11 entries, 1 request, 1 finding",
    ] {
        assert!(table.contains(expected), "{expected} is not in {table}");
    }
    let curl = run(&["convert", "--to", "curl"], &[&first[..], &second].concat());
    assert!(curl.status.success());
    assert!(String::from_utf8(curl.stdout.clone()).unwrap().contains("--data-raw '****'"));
    assert!(errors(&curl).contains("1 request is masked: in them a * stands for each byte"), "{}", errors(&curl));
}

#[test]
fn a_recording_is_followed_over_its_rotation() {
    let [first, second] = tapped();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gatespan.rec");
    fs::write(&path, first).unwrap();
    let mut child =
        gatespan().args(["decode", "--follow", "--json"]).arg(&path).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut up_to = |expected: &str| while !lines.next().unwrap().unwrap().contains(expected) {};
    up_to("\"end of the request body: 4 bytes\"");
    // The whole of the next file has its name at once.
    let next = folder.path().join("next");
    fs::write(&next, second).unwrap();
    fs::rename(&next, &path).unwrap();
    up_to("\"status\":200");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
