//! What was captured and recorded from real servers, read and converted. How it was made say the READMEs of `fixtures/captures` and `fixtures/recordings`.

#[path = "support/seen.rs"]
mod seen;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gatespan::protocol::cgi::{Limits, ResponseHead};
use gatespan::protocol::fastcgi::RecordType;
use gatespan::recording::form::{fastcgi, json};
use gatespan::recording::{
    CaptureReader, ConnectionId, Direction, Entry, EntryReader, Exchange, Exchanges, InRecords, LogReader, Passed,
    Reader, Spool, What,
};
use seen::{bytes_of, cut_everywhere, read, take, told};

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn capture(name: &str) -> Vec<u8> {
    fixture(&format!("captures/{name}"))
}

/// The names of all files of a folder of fixtures that end like this.
fn names(folder: &str, ends: &[&str]) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder);
    let files = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| ends.iter().any(|end| name.ends_with(end))).collect();
    names.sort();
    names
}

#[cfg(feature = "cli")]
fn gatespan(arguments: &[&str]) -> (Vec<u8>, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gatespan"));
    let output = command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    // A conversion that lacks something has made what it could, and says so with its exit code.
    assert_eq!(output.status.success(), !said.contains("what could be read is converted"), "{arguments:?}: {said}");
    (output.stdout, said)
}

/// A file's entries, read in pieces of so many bytes.
fn entries(mut reader: impl EntryReader, file: &[u8], len: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut take = |reader: &mut dyn EntryReader| {
        while let Some(entry) = reader.next().unwrap() {
            entries.push(entry);
        }
    };
    for piece in file.chunks(len) {
        reader.receive(piece);
        take(&mut reader);
    }
    reader.end();
    take(&mut reader);
    entries
}

fn captured(name: &str) -> Vec<Entry> {
    entries(InRecords::new(CaptureReader::default()), &capture(name), 1000)
}

/// The records of each connection and direction, told shortly: `BEGIN_REQUEST/1 PARAMS/1:620 PARAMS/1 STDIN/1`, which are type, id and length.
fn records(entries: &[Entry]) -> BTreeMap<(u64, char), String> {
    let mut lines: BTreeMap<_, String> = BTreeMap::new();
    for entry in entries {
        let Some(direction) = entry.passed.direction() else { continue };
        let word = match &entry.passed {
            Passed::Record { record, .. } => {
                let header = record.header();
                let len = if header.content_len == 0 { String::new() } else { format!(":{}", header.content_len) };
                format!("{}/{}{len}", header.record_type, header.request_id)
            }
            Passed::Garbage { piece, .. } => format!("garbage:{}", piece.bytes.len()),
            Passed::Cut { piece, .. } => format!("cut:{}", piece.bytes.len()),
            Passed::Gap { len, .. } => len.map_or("gap".to_owned(), |len| format!("gap:{len}")),
            _ => continue,
        };
        let arrow = if direction == Direction::ToApplication { '>' } else { '<' };
        let line = lines.entry((entry.connection.0, arrow)).or_default();
        let separator = if line.is_empty() { "" } else { " " };
        line.push_str(&format!("{separator}{word}"));
    }
    lines
}

/// The exchanges in the order in which they end.
fn all_exchanges(entries: &[Entry]) -> Vec<Exchange> {
    let mut exchanges = Exchanges::new(Spool::default());
    let mut found = Vec::new();
    for entry in entries {
        exchanges.receive(entry).unwrap();
        found.extend(std::iter::from_fn(|| exchanges.next()));
    }
    exchanges.end().unwrap();
    found.extend(std::iter::from_fn(|| exchanges.next()));
    found
}

/// The same, told shortly: connection and id, request, answer.
fn exchanges(entries: &[Entry]) -> Vec<String> {
    all_exchanges(entries).iter().map(line).collect()
}

fn line(exchange: &Exchange) -> String {
    let param = |name: &str| {
        let found = exchange.params.iter().find(|(own, _)| *own == name.as_bytes());
        String::from_utf8_lossy(found.map_or(b"-", |(_, value)| value)).into_owned()
    };
    let answer = exchange.stdout.first(1024 * 1024).unwrap();
    let answered = match ResponseHead::decode(&answer, &Limits::default()) {
        Ok(Some((head, len))) => format!("{} and {} bytes", head.status_or_default().0, answer.len() - len),
        _ => "no head".to_owned(),
    };
    let end = match &exchange.end {
        Some(end) if end.application_status != 0 => format!(", status {}", end.application_status),
        Some(_) => String::new(),
        None => ", no end".to_owned(),
    };
    let damaged = if exchange.is_damaged { ", damaged" } else { "" };
    let (connection, id) = (exchange.connection, exchange.id);
    let (method, uri, stdin) = (param("REQUEST_METHOD"), param("REQUEST_URI"), exchange.stdin.len());
    format!("{connection}/{id} {method} {uri} with {stdin} bytes: {answered}{end}{damaged}")
}

// ---- Captures ----

/// Nothing that is not in the list is in the folder, so that every capture is looked at.
#[test]
fn captures_hold_these_records_and_exchanges() {
    // What each direction of the first connection has, and the exchanges of all.
    let kept = (
        "BEGIN_REQUEST/1:8 PARAMS/1:521 PARAMS/1 STDIN/1 BEGIN_REQUEST/1:8 PARAMS/1:507 PARAMS/1 STDIN/1 \
         BEGIN_REQUEST/1:8 PARAMS/1:607 PARAMS/1 STDIN/1:6 STDIN/1 BEGIN_REQUEST/1:8 PARAMS/1:521 PARAMS/1 STDIN/1 \
         BEGIN_REQUEST/1:8 PARAMS/1:555 PARAMS/1 STDIN/1",
        "STDOUT/1:89 STDOUT/1 END_REQUEST/1:8 STDOUT/1:173 STDOUT/1 END_REQUEST/1:8 STDOUT/1:64 STDOUT/1 END_REQUEST/1:8 \
         STDOUT/1:40 STDOUT/1 END_REQUEST/1:8 STDOUT/1:114 STDOUT/1 END_REQUEST/1:8",
        &[
            "1/1 GET /app/status?code=404 with 0 bytes: 404 and 4 bytes",
            "1/1 GET /app/headers with 0 bytes: 200 and 8 bytes",
            "1/1 POST /app/echo with 6 bytes: 200 and 6 bytes",
            "1/1 GET /app/status?code=204 with 0 bytes: 204 and 0 bytes",
            "1/1 GET /app/redirect?code=302&to=/elsewhere with 0 bytes: 302 and 10 bytes",
        ][..],
    );
    let uploaded = (
        "BEGIN_REQUEST/1:8 PARAMS/1:575 PARAMS/1 STDIN/1:30000 STDIN/1",
        "STDOUT/1:166 STDOUT/1 END_REQUEST/1:8",
        &["1/1 POST /app/digest with 30000 bytes: 200 and 71 bytes"][..],
    );
    let table: &[(&str, &str, &str, &[&str])] = &[
        (
            "haproxy-multiplexed.pcap",
            "GET_VALUES/0:32 BEGIN_REQUEST/1:8 PARAMS/1:452 PARAMS/1 STDIN/1 BEGIN_REQUEST/3:8 PARAMS/3:474 PARAMS/3 STDIN/3 \
             BEGIN_REQUEST/5:8 PARAMS/5:474 PARAMS/5 STDIN/5 BEGIN_REQUEST/7:8 PARAMS/7:474 PARAMS/7 STDIN/7 \
             BEGIN_REQUEST/9:8 PARAMS/9:474 PARAMS/9 STDIN/9 BEGIN_REQUEST/11:8 PARAMS/11:474 PARAMS/11 STDIN/11 \
             BEGIN_REQUEST/13:8 PARAMS/13:474 PARAMS/13 STDIN/13",
            "GET_VALUES_RESULT/0:35 STDOUT/1:106 STDOUT/1 END_REQUEST/1:8 STDOUT/3:106 STDOUT/3 END_REQUEST/3:8 STDOUT/5:106 STDOUT/5 \
             END_REQUEST/5:8 STDOUT/7:106 STDOUT/7 END_REQUEST/7:8 STDOUT/13:107 STDOUT/13 END_REQUEST/13:8 STDOUT/9:106 STDOUT/9 END_REQUEST/9:8 \
             STDOUT/11:107 STDOUT/11 END_REQUEST/11:8",
            &[
                "1/1 GET /app/connection?ms=0 with 0 bytes: 200 and 27 bytes",
                "1/3 GET /app/connection?ms=300&number=6 with 0 bytes: 200 and 27 bytes",
                "1/5 GET /app/connection?ms=300&number=5 with 0 bytes: 200 and 27 bytes",
                "1/7 GET /app/connection?ms=300&number=3 with 0 bytes: 200 and 27 bytes",
                "1/13 GET /app/connection?ms=300&number=2 with 0 bytes: 200 and 28 bytes",
                "1/9 GET /app/connection?ms=300&number=4 with 0 bytes: 200 and 27 bytes",
                "1/11 GET /app/connection?ms=300&number=1 with 0 bytes: 200 and 28 bytes",
            ],
        ),
        (
            "libfcgi-reset.pcap",
            "BEGIN_REQUEST/1:8 PARAMS/1:633 PARAMS/1 STDIN/1:20000 STDIN/1",
            "STDOUT/1:32",
            &["1/1 POST /app/crash-late with 20000 bytes: 200 and 4 bytes, no end"],
        ),
        (
            "nginx-cut.pcap",
            "BEGIN_REQUEST/1:8 PARAMS/1:507 gap:16",
            "STDOUT/1:654 gap:24",
            &["1/1 - - with 0 bytes: no head, no end, damaged"],
        ),
        (
            "nginx-ipv6.pcap",
            "BEGIN_REQUEST/1:8 PARAMS/1:634 PARAMS/1 STDIN/1:11 STDIN/1",
            "STDOUT/1:85 STDERR/1:5 STDERR/1 STDOUT/1 END_REQUEST/1:8",
            &["1/1 POST /app/stderr?text=said with 11 bytes: 200 and 7 bytes"],
        ),
        (
            "nginx-joined.pcap",
            "gap BEGIN_REQUEST/1:8 PARAMS/1:521 PARAMS/1 STDIN/1 BEGIN_REQUEST/1:8 PARAMS/1:607 PARAMS/1 STDIN/1:6 STDIN/1",
            "gap STDOUT/1:89 STDOUT/1 END_REQUEST/1:8 STDOUT/1:64 STDOUT/1 END_REQUEST/1:8",
            &[
                "1/1 GET /app/status?code=404 with 0 bytes: 404 and 4 bytes, damaged",
                "1/1 POST /app/echo with 6 bytes: 200 and 6 bytes",
            ],
        ),
        ("nginx-kept-big-endian.pcap", kept.0, kept.1, kept.2),
        ("nginx-kept.pcap", kept.0, kept.1, kept.2),
        ("nginx-kept.pcapng", kept.0, kept.1, kept.2),
        (
            "nginx-php.pcap",
            "BEGIN_REQUEST/1:8 PARAMS/1:505 PARAMS/1 STDIN/1",
            "STDOUT/1:108 END_REQUEST/1:8",
            &["1/1 GET /app/cookies with 0 bytes: 404 and 9 bytes", "2/1 GET /app/error with 0 bytes: 500 and 0 bytes"],
        ),
        (
            "nginx-plain.pcap",
            "BEGIN_REQUEST/1:8 PARAMS/1:550 PARAMS/1 STDIN/1",
            "STDOUT/1:697 STDOUT/1 END_REQUEST/1:8",
            &["1/1 GET /app/environ?one=1&two=%20 with 0 bytes: 200 and 617 bytes"],
        ),
        (
            "nginx-reset.pcap",
            "BEGIN_REQUEST/1:8 PARAMS/1:511 PARAMS/1 STDIN/1",
            "STDOUT/1:83 STDOUT/1 END_REQUEST/1:8",
            &["1/1 GET /app/slow?ms=300 with 0 bytes: 200 and 5 bytes"],
        ),
        (
            "nginx-several.pcap",
            "BEGIN_REQUEST/1:8 PARAMS/1:541 PARAMS/1 STDIN/1",
            "STDOUT/1:83 STDOUT/1:9 STDOUT/1:9 STDOUT/1 END_REQUEST/1:8",
            &[
                "3/1 GET /app/events?n=3&ms=50&number=4 with 0 bytes: 200 and 27 bytes",
                "1/1 GET /app/events?n=3&ms=50&number=1 with 0 bytes: 200 and 27 bytes",
                "4/1 GET /app/events?n=3&ms=50&number=2 with 0 bytes: 200 and 27 bytes",
                "2/1 GET /app/events?n=3&ms=50&number=3 with 0 bytes: 200 and 27 bytes",
                "5/1 GET /app/events?n=3&ms=50&number=5 with 0 bytes: 200 and 27 bytes",
                "6/1 GET /app/events?n=3&ms=50&number=6 with 0 bytes: 200 and 27 bytes",
            ],
        ),
        (
            "nginx-upload-lost.pcap",
            "BEGIN_REQUEST/1:8 PARAMS/1:575 PARAMS/1 STDIN/1:30000 gap:8",
            uploaded.1,
            &["1/1 POST /app/digest with 30000 bytes: 200 and 71 bytes, damaged"],
        ),
        ("nginx-upload-reordered.pcap", uploaded.0, uploaded.1, uploaded.2),
        ("nginx-upload-repeated.pcap", uploaded.0, uploaded.1, uploaded.2),
        ("nginx-upload.pcap", uploaded.0, uploaded.1, uploaded.2),
    ];
    assert_eq!(names("captures", &[".pcap", ".pcapng"]), table.iter().map(|(name, ..)| *name).collect::<Vec<_>>());
    for (name, to_application, to_web_server, expected) in table {
        let entries = captured(name);
        let records = records(&entries);
        assert_eq!([&records[&(1, '>')], &records[&(1, '<')]], [to_application, to_web_server], "{name}");
        assert_eq!(exchanges(&entries), *expected, "{name}");
    }
}

/// Ports are others each time that the captures are made.
fn without_numbers(line: &str) -> String {
    let mut short = String::new();
    for character in line.chars() {
        match character.is_ascii_digit() {
            true if short.ends_with('0') => {}
            true => short.push('0'),
            false => short.push(character),
        }
    }
    short
}

#[test]
fn captures_say_how_connections_begin_and_end() {
    let ends = |name: &str| {
        let lines = told(&read(&capture(name)));
        lines.iter().filter(|line| !line.ends_with("bytes")).map(|line| without_numbers(line)).collect::<Vec<_>>()
    };
    let opened = "0 opened 0.0.0.0:0 to 0.0.0.0:0";
    assert_eq!(ends("nginx-plain.pcap"), [opened, "0 < ended", "0 > ended"]);
    assert_eq!(ends("nginx-ipv6.pcap"), ["0 opened [::0]:0 to [::0]:0", "0 < ended", "0 > ended"]);
    // The web server ends a kept connection.
    assert_eq!(ends("nginx-kept.pcap"), [opened, "0 > ended", "0 < ended"]);
    assert_eq!(ends("nginx-joined.pcap"), [opened, "0 > gap", "0 < gap"]);
    assert_eq!(ends("libfcgi-reset.pcap"), [opened, "0 broken: reset by the application"]);
    assert_eq!(ends("nginx-reset.pcap"), [opened, "0 < ended", "0 broken: reset by the web server"]);
    assert_eq!(ends("nginx-cut.pcap"), [opened, "0 > gap of 0", "0 < gap of 0", "0 < ended", "0 > ended"]);
    assert_eq!(
        ends("nginx-upload-lost.pcap"),
        [opened, "0 > gap of 0", "0 > gap of 0", "0 > gap of 0", "0 < ended", "0 > ended"]
    );
}

#[test]
fn what_the_network_does_changes_no_byte() {
    let upload = bytes_of(&read(&capture("nginx-upload.pcap")));
    assert_eq!(upload[&(1, true)].len(), 30_624);
    for name in ["nginx-upload-reordered.pcap", "nginx-upload-repeated.pcap"] {
        assert_eq!(bytes_of(&read(&capture(name))), upload, "{name}");
    }
    let kept = bytes_of(&read(&capture("nginx-kept.pcap")));
    for name in ["nginx-kept-big-endian.pcap", "nginx-kept.pcapng"] {
        assert_eq!(bytes_of(&read(&capture(name))), kept, "{name}");
    }
    // Of what was lost the length is known: four segments, of which the last had less than the others.
    let lost = read(&capture("nginx-upload-lost.pcap"));
    let gaps = lost.iter().map(|seen| if let What::Gap { len, .. } = seen.what { len.unwrap() } else { 0 });
    let left: usize = bytes_of(&lost)[&(1, true)].len();
    assert_eq!(left as u64 + gaps.sum::<u64>(), 30_624);
}

#[test]
fn captures_cut_anywhere_give_what_was_before() {
    for name in names("captures", &[".pcap", ".pcapng"]) {
        cut_everywhere(&capture(&name));
    }
}

// ---- Recordings ----

fn recorded(name: &str) -> Vec<Entry> {
    entries(InRecords::new(LogReader::new()), &fixture(&format!("recordings/{name}.recording")), 1000)
}

/// The fronts that were asked the same.
const FRONTS: [&str; 6] = ["apache", "caddy", "h2o", "haproxy", "lighttpd", "nginx"];

#[test]
fn every_front_brings_the_same_requests_to_the_application() {
    for front in FRONTS {
        // HAProxy has one connection, and odd ids, until a connection is lost.
        let places: Vec<String> = (0..10)
            .map(|index| match (front, index) {
                ("haproxy", 9) => "2/1".to_owned(),
                ("haproxy", index) => format!("1/{}", 2 * index + 1),
                (_, index) => format!("{}/1", index + 1),
            })
            .collect();
        let chunked = if front == "caddy" { "400 and 41 bytes" } else { "200 and 10 bytes" };
        let expected = [
            "GET /app/environ?one=1&two=%20 with 0 bytes: 200 and 0 bytes",
            "POST /app/echo with 11 bytes: 200 and 11 bytes",
            "POST /app/digest with 40000 bytes: 200 and 71 bytes",
            &format!("POST /app/echo with 10 bytes: {chunked}"),
            "GET /app/stderr?text=said with 0 bytes: 200 and 7 bytes",
            "GET /app/status?code=404 with 0 bytes: 404 and 4 bytes",
            "GET /app/headers with 0 bytes: 200 and 8 bytes",
            "HEAD /app/environ with 0 bytes: 200 and 0 bytes",
            "GET /app/error-after?n=1000 with 0 bytes: 200 and 1000 bytes, no end",
            "GET /app/events?n=50&ms=100 with 0 bytes: 200 and 0 bytes, no end",
        ];
        let found = exchanges(&recorded(front));
        assert_eq!(found.len(), expected.len(), "{front}: {found:#?}");
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            let expected = format!("{} {expected}", places[index]);
            // How long its own variables are, and how far it came until the client left, differs.
            let any_len = index == 0 || index == 9;
            let short =
                |line: &str| if any_len { line.split("200 and").next().unwrap().to_owned() } else { line.to_owned() };
            assert_eq!(short(found), short(&expected), "{front}");
            // lighttpd, which collects answers first, lets the application finish for a client that has left.
            let has_end = index < 8 || (front, index) == ("lighttpd", 9);
            assert_eq!(!found.ends_with("no end"), has_end, "{front}: {found}");
        }
    }
}

/// What servers do that no specification says: each front differs in some of it from the others.
#[test]
fn fronts_differ_in_how_they_speak_fastcgi() {
    let found: Vec<String> = FRONTS.iter().map(|front| habits(front)).collect();
    let expected = [
        "apache: flags 0, STDIN 8192 8192 8192 8192 7232; twice \"one, two\", no proxy, no underscore; GET without a length; \
         body with CONTENT_LENGTH CONTENT_TYPE; chunked 10; SERVER_NAME 127.0.0.1; HTTP_HOST with port",
        "caddy: flags 0, STDIN 40000; twice \"one, two\", proxy, underscore; GET with length \"0\"; \
         body with CONTENT_LENGTH CONTENT_TYPE HTTP_CONTENT_LENGTH HTTP_CONTENT_TYPE; chunked -1; SERVER_NAME 127.0.0.1; HTTP_HOST with port",
        "h2o: flags 0, STDIN 40000; twice \"one\" \"two\", proxy, underscore; GET without a length; \
         body with CONTENT_LENGTH CONTENT_TYPE; chunked 10; SERVER_NAME default; HTTP_HOST with port",
        "haproxy: flags 1, STDIN 15122 16320 8558; twice \"one\" \"two\", no proxy, no underscore; GET with length \"0\"; \
         body with CONTENT_LENGTH CONTENT_TYPE; chunked 10; SERVER_NAME 127.0.0.1:8004; HTTP_HOST with port",
        "lighttpd: flags 0, STDIN 40000; twice \"one, two\", no proxy, underscore; GET with length \"0\"; \
         body with CONTENT_LENGTH CONTENT_TYPE HTTP_CONTENT_LENGTH; chunked 10; SERVER_NAME 127.0.0.1; HTTP_HOST with port",
        "nginx: flags 0, STDIN 32768 7232; twice \"one\" \"two\", proxy, no underscore; GET with length \"\"; \
         body with CONTENT_LENGTH CONTENT_TYPE HTTP_CONTENT_LENGTH HTTP_CONTENT_TYPE; chunked 10; SERVER_NAME localhost; HTTP_HOST without port",
    ];
    assert_eq!(found, expected);
}

fn habits(front: &str) -> String {
    let entries = recorded(front);
    let all = all_exchanges(&entries);
    let values = |exchange: usize, name: &str| -> Vec<String> {
        let of_name = all[exchange].params.iter().filter(|(own, _)| *own == name.as_bytes());
        of_name.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    };
    let has = |exchange: usize, name: &str| !values(exchange, name).is_empty();
    let (get, post, chunked) = (0, 2, 3);
    // The records of the upload: it is the third request, and the only one of this length.
    let stdin: Vec<String> = entries
        .iter()
        .filter_map(|entry| match &entry.passed {
            Passed::Record { record, .. } if record.header().record_type == RecordType::Stdin => Some(record),
            _ => None,
        })
        .filter(|record| record.header().content_len > 100)
        .map(|record| record.header().content_len.to_string())
        .collect();
    let no = |is: bool| if is { "" } else { "no " };
    let length = match &values(get, "CONTENT_LENGTH")[..] {
        [] => "without a length".to_owned(),
        values => format!("with length {values:?}").replace(['[', ']'], ""),
    };
    let of_body: Vec<&str> = ["CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"]
        .into_iter()
        .filter(|name| has(post, name))
        .collect();
    let twice = format!("{:?}", values(get, "HTTP_X_TWICE")).replace(['[', ']'], "").replace("\", \"", "\" \"");
    let host = values(get, "HTTP_HOST").concat();
    format!(
        "{front}: flags {}, STDIN {}; twice {twice}, {}proxy, {}underscore; GET {length}; body with {}; chunked {}; SERVER_NAME {}; HTTP_HOST {} port",
        all[get].flags,
        stdin.join(" "),
        no(has(get, "HTTP_PROXY")),
        no(has(get, "HTTP_X_UNDERSCORE")),
        of_body.join(" "),
        if has(chunked, "CONTENT_LENGTH") { values(chunked, "CONTENT_LENGTH").concat() } else { "-".to_owned() },
        values(get, "SERVER_NAME").concat(),
        if host.contains(':') { "with" } else { "without" },
    )
}

#[test]
fn recordings_hold_what_other_applications_answered() {
    let expected = [
        "1/1 GET /page.php/cookies with 0 bytes: 404 and 9 bytes",
        "2/1 GET /page.php/error with 0 bytes: 500 and 0 bytes",
        "3/1 POST /page.php/digest with 11 bytes: 200 and 68 bytes",
    ];
    assert_eq!(exchanges(&recorded("caddy-php")), expected);
    let expected = [
        "1/1 GET /app/status with 0 bytes: 200 and 7 bytes, status 7",
        "2/1 GET /app/slow with 0 bytes: 200 and 6 bytes, status 7",
        "3/1 GET /app/short with 0 bytes: 200 and 6 bytes, status 7",
    ];
    assert_eq!(exchanges(&recorded("apache-libfcgi")), expected);
}

#[test]
fn masked_recordings_have_no_secrets_and_all_lengths() {
    let file = fixture("recordings/nginx-masked.recording");
    for secret in [&b"secret"[..], b"c2VjcmV0", b"Set-Cookie: a"] {
        assert!(!file.windows(secret.len()).any(|window| window == secret), "{}", secret.escape_ascii());
    }
    let entries = recorded("nginx-masked");
    // A body of eight bytes: its length is there, and that it is not.
    let masked = entries.iter().filter_map(|entry| match &entry.passed {
        Passed::Record { record, .. } if record.has_holes() => Some((record.header().record_type, record.content())),
        _ => None,
    });
    assert!(masked.clone().any(|(record_type, content)| record_type == RecordType::Stdin && content == b"********"));
    assert!(masked.clone().any(|(record_type, _)| record_type == RecordType::Params));
    assert!(entries.iter().all(|entry| match &entry.passed {
        Passed::Record { record, .. } => !record.has_lost_bytes(),
        passed => passed.bytes().is_empty(),
    }));
}

#[test]
fn recordings_cut_anywhere_give_what_was_before() {
    for name in names("recordings", &[".recording"]) {
        let file = fixture(&format!("recordings/{name}"));
        let (mut whole, mut reader) = (Vec::new(), LogReader::new());
        reader.receive(&file);
        reader.end();
        assert_eq!(take(&mut reader, &mut whole), None, "{name}");
        for cut in 0..file.len() {
            let (mut seen, mut reader) = (Vec::new(), LogReader::new());
            reader.receive(&file[..cut]);
            reader.end();
            if let Some(error) = take(&mut reader, &mut seen) {
                assert!(error.offset <= cut as u64, "{name} cut at {cut}: {error}");
            }
            assert!(whole.starts_with(&seen), "{name} cut at {cut}");
        }
    }
}

// ---- Conversions ----

/// To `json` and back, and `fastcgi` and back, with the same bytes; and once more, which changes nothing.
fn converts_there_and_back(name: &str, entries_of: Vec<Entry>) {
    let mut lines = Vec::new();
    let mut writer = json::Writer::default();
    entries_of.iter().for_each(|entry| writer.write(entry, &mut lines));
    let again = entries(json::Reader::default(), &lines, 777);
    let without_offset = |entry: &Entry| Entry { offset: 0, ..entry.clone() };
    assert!(again.iter().map(without_offset).eq(entries_of.iter().map(without_offset)), "{name}");
    let (mut second, mut writer) = (Vec::new(), json::Writer::default());
    again.iter().for_each(|entry| writer.write(entry, &mut second));
    assert!(second == lines, "{name}");

    let mut wire: BTreeMap<_, Vec<u8>> = BTreeMap::new();
    let (mut all, mut of_all) = (Vec::new(), Vec::new());
    for entry in &entries_of {
        if let Some(direction) = entry.passed.direction() {
            fastcgi::write(entry, wire.entry((entry.connection, direction == Direction::ToApplication)).or_default());
        }
        fastcgi::write(entry, &mut all);
        of_all.extend_from_slice(entry.passed.bytes());
    }
    assert!(all == of_all, "{name}");
    wire.insert((ConnectionId(0), true), all);
    for bytes in wire.values() {
        let (mut again, mut second) = (Vec::new(), Vec::new());
        entries(fastcgi::Reader::default(), bytes, 777).iter().for_each(|entry| fastcgi::write(entry, &mut again));
        assert!(again == *bytes, "{name}");
        entries(fastcgi::Reader::default(), &again, 50_000).iter().for_each(|entry| fastcgi::write(entry, &mut second));
        assert!(second == again, "{name}");
    }
}

#[test]
fn recordings_are_converted_there_and_back() {
    let names = names("recordings", &[".recording"]);
    assert_eq!(names.len(), FRONTS.len() + 3);
    for name in names {
        converts_there_and_back(&name, recorded(name.trim_end_matches(".recording")));
    }
}

#[test]
fn captures_are_converted_there_and_back() {
    for name in names("captures", &[".pcap", ".pcapng"]) {
        converts_there_and_back(&name, captured(&name));
    }
}

#[test]
#[cfg(feature = "cli")]
fn the_tool_reads_captures() {
    for name in names("captures", &[".pcap", ".pcapng"]) {
        let path = format!("fixtures/captures/{name}");
        let mut lines = Vec::new();
        let mut writer = json::Writer::default();
        captured(&name).iter().for_each(|entry| writer.write(entry, &mut lines));
        let (found, _) = gatespan(&["convert", "--to", "json", &path]);
        assert!(found == lines, "{name}");
        // A connection to a named port is told, and so numbered, when it is made, and any other when its first bytes show what it is.
        let unnumbered = |lines: &[u8]| {
            let without_number = |line: &[u8]| {
                let mut line: serde_json::Value = serde_json::from_slice(line).unwrap();
                line["connection"].take();
                line.to_string()
            };
            let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let mut lines: Vec<_> = lines.map(without_number).collect();
            lines.sort();
            lines
        };
        let (found, _) = gatespan(&["convert", "--to", "json", "--port", "9000", &path]);
        assert_eq!(unnumbered(&found), unnumbered(&lines), "{name}");
        let (found, said) = gatespan(&["decode", "--port", "9001", &path]);
        assert!(found.is_empty(), "{name}: {}", found.escape_ascii());
        let expected = format!("gatespan: {path}: expected connections that carry FastCGI, got none; left out: ");
        assert!(said.starts_with(&expected) && said.ends_with(" packets from and to other ports\n"), "{said}");
    }
}
