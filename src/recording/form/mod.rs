//! The forms of recordings: each is read, written, or both, in a file of its own.
//!
//! `fastcgi` and `json` hold records, the others exchanges. What each of them can't hold is listed in docs/recording.md.

pub mod fastcgi;
pub mod json;

pub mod cgi;
pub mod curl;
pub mod har;
pub mod http;

mod message;

use std::io::{self, Write};

use super::{CaptureReader, Exchange, ReadError};

/// A form that can be read from a stream of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Records as they stand on the wire.
    Fastcgi,
    /// A line of JSON for each record.
    Json,
    /// Messages of HTTP/1.1.
    Http,
    /// A capture of packets, in the older format.
    Pcap,
    /// A capture of packets, in the newer format.
    Pcapng,
    /// What `gatespan tap` records.
    Tap,
}

/// How many bytes of a file are enough to recognise its form.
pub const RECOGNISED_FROM: usize = 32;

/// The form of a file that begins with these bytes, of which there are [`RECOGNISED_FROM`] or the whole file.
pub fn recognise(start: &[u8]) -> Option<Form> {
    if start.starts_with(json::LINE_START) {
        return Some(Form::Json);
    }
    if start.starts_with(b"gatespan recording ") {
        return Some(Form::Tap);
    }
    if CaptureReader::recognizes(start) {
        return Some(if start.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) { Form::Pcapng } else { Form::Pcap });
    }
    // A method, which is in capitals with those that are in use, and a blank.
    let method = start.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    if method > 0 && start.get(method) == Some(&b' ') {
        return Some(Form::Http);
    }
    (start.first() == Some(&crate::protocol::fastcgi::VERSION)).then_some(Form::Fastcgi)
}

/// A writer of exchanges into one stream of bytes.
pub trait ExchangeWriter {
    /// Writes an exchange, and says what of it the form can't hold though it holds such things of others.
    ///
    /// # Errors
    ///
    /// Those of the output, and of bodies that can't be read.
    fn write(&mut self, exchange: &Exchange, out: &mut dyn Write) -> io::Result<Vec<String>>;

    /// Writes what stands behind the last.
    ///
    /// # Errors
    ///
    /// Those of the output.
    fn finish(&mut self, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

/// A reader of files of a form that knows of exchanges: bytes in, exchanges out.
pub trait ExchangeReader {
    /// Takes the next bytes of the file. To be called when [`next`](Self::next) has nothing more.
    fn receive(&mut self, bytes: &[u8]);

    /// There are no more bytes: what is incomplete now stays so.
    fn end(&mut self);

    /// The next exchange; `None` when more bytes are needed, or all were read.
    ///
    /// # Errors
    ///
    /// The file can't be read on from here, or a body can't be stored. What was returned before is good.
    fn next(&mut self) -> Result<Option<Exchange>, ExchangeReadError>;
}

/// Why there is no next exchange.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeReadError {
    /// The file is not of its form.
    #[error(transparent)]
    Form(#[from] ReadError),
    /// A body could not be stored, or a file not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::fastcgi::{RequestId, name_value, put_record};
    use crate::recording::{ConnectionId, EntryReader, Exchanges, Spool};

    /// An exchange as records: with a role, variables, a body, an answer and errors.
    fn records(
        role: u8,
        params: &[(&[u8], &[u8])],
        stdin: &[u8],
        stdout: &[u8],
        stderr: &[u8],
        has_end: bool,
    ) -> Vec<u8> {
        let mut wire = Vec::new();
        let mut encoded = Vec::new();
        params.iter().for_each(|(name, value)| name_value::encode(name, value, &mut encoded).unwrap());
        let id = RequestId(3);
        put_record(1.into(), id, &[0, role, 0, 0, 0, 0, 0, 0], 0, &mut wire);
        for (record_type, stream) in [(4, &encoded[..]), (5, stdin), (7, stderr), (6, stdout)] {
            stream.chunks(30_000).for_each(|chunk| put_record(record_type.into(), id, chunk, 1, &mut wire));
            put_record(record_type.into(), id, b"", 0, &mut wire);
        }
        if has_end {
            put_record(3.into(), id, &[0, 0, 0, 7, 0, 0, 0, 0], 0, &mut wire);
        }
        wire
    }

    fn exchanges(wire: &[u8]) -> Vec<Exchange> {
        let (mut reader, mut exchanges) = (fastcgi::Reader::default(), Exchanges::new(Spool::new(50_000, None)));
        reader.receive(wire);
        reader.end();
        let mut found = Vec::new();
        while let Some(entry) = reader.next().unwrap() {
            exchanges.receive(&entry).unwrap();
            found.extend(std::iter::from_fn(|| exchanges.next()));
        }
        exchanges.end().unwrap();
        found.extend(std::iter::from_fn(|| exchanges.next()));
        found
    }

    fn wire(exchanges: &[Exchange]) -> Vec<u8> {
        let entries = exchanges.iter().flat_map(Exchange::records);
        entries.flat_map(|entry| entry.unwrap().passed.bytes().to_vec()).collect()
    }

    fn written(writer: &mut dyn ExchangeWriter, exchanges: &[Exchange]) -> (Vec<u8>, Vec<String>) {
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        exchanges.iter().for_each(|exchange| notes.extend(writer.write(exchange, &mut out).unwrap()));
        writer.finish(&mut out).unwrap();
        (out, notes)
    }

    /// What is read from messages, and why it was not read on.
    fn read_http(bytes: &[u8], piece: usize) -> (Vec<Exchange>, Option<ExchangeReadError>) {
        let mut reader = http::Reader::new(Spool::default());
        let mut found = Vec::new();
        for (at, chunk) in bytes.chunks(piece).chain([&b""[..]]).enumerate() {
            reader.receive(chunk);
            if at == bytes.len().div_ceil(piece) {
                reader.end();
            }
            loop {
                match reader.next() {
                    Ok(Some(exchange)) => found.push(exchange),
                    Ok(None) => break,
                    Err(error) => return (found, Some(error)),
                }
            }
        }
        (found, None)
    }

    const PARAMS: &[(&[u8], &[u8])] = &[
        (b"REQUEST_METHOD", b"POST"),
        (b"SCRIPT_NAME", b"/app"),
        (b"PATH_INFO", b"/a b/\xc3\xa9"),
        (b"QUERY_STRING", b"q=1&r=two%20words"),
        (b"CONTENT_TYPE", b"text/plain"),
        (b"CONTENT_LENGTH", b"5"),
        (b"HTTP_HOST", b"example.org:8080"),
        (b"HTTP_ACCEPT_LANGUAGE", b"de, en;q=0.5"),
        (b"HTTP_COOKIE", b"a=1; b=it's"),
        (b"HTTP_COOKIE", b"c=2"),
        (b"SCRIPT_FILENAME", b"/srv/cgi/app.cgi"),
        (b"EMPTY", b""),
    ];

    const ANSWER: &[u8] = b"Status: 201 Created\r\nContent-Type: text/plain\r\nSet-Cookie: x=1; Path=/\r\n\r\nhello\n";

    #[test]
    fn messages_look_like_this() {
        let exchanges = exchanges(&records(1, PARAMS, b"hello", ANSWER, b"oh", true));
        let (bytes, notes) = written(&mut http::Writer::default(), &exchanges);
        let expected = "POST /app/a%20b/%C3%A9?q=1&r=two%20words HTTP/1.1\r\n\
            Host: example.org:8080\r\nAccept-Language: de, en;q=0.5\r\nCookie: a=1; b=it's\r\nCookie: c=2\r\n\
            Content-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello\
            HTTP/1.1 201 Created\r\nContent-Type: text/plain\r\nSet-Cookie: x=1; Path=/\r\n\
            Transfer-Encoding: chunked\r\n\r\n6\r\nhello\n\r\n0\r\n\r\n";
        assert_eq!((String::from_utf8(bytes).unwrap().as_str(), notes), (expected, vec![]));
    }

    #[test]
    fn messages_read_and_written_a_second_time_are_the_same() {
        let none: &[(&[u8], &[u8])] = &[];
        let get: &[(&[u8], &[u8])] = &[
            (b"REQUEST_METHOD", b"GET"),
            (b"REQUEST_URI", b"/x?y z"),
            (b"SERVER_NAME", b"h"),
            (b"HTTP_PROXY", b"evil"),
            (b"HTTP_BAD", b"a\nb"),
            (b"HTTP_TRANSFER_ENCODING", b"chunked"),
        ];
        let head: &[(&[u8], &[u8])] = &[(b"REQUEST_METHOD", b"HEAD"), (b"SERVER_PROTOCOL", b"HTTP/1.0")];
        let large = vec![b'x'; 200_000];
        let long = [b"Content-Length: 200000\n\n", &large[..]].concat();
        let all = [
            records(1, PARAMS, b"hello", ANSWER, b"oh", true),
            records(1, get, b"", b"Location: /elsewhere\n\n", b"", true),
            records(1, head, b"", b"Content-Length: 12\n\n", b"", true),
            records(1, none, b"", b"", b"", true),
            records(1, get, b"", b"<html>", b"", true),
            records(1, PARAMS, &large, &long, b"", true),
            records(1, get, b"", b"Status: 304\n\n", b"", true),
            records(1, get, b"", b"Status: 204 No\nContent-Length: 3\n\nabc", b"", true),
            records(1, get, b"", b"HTTP/1.1 404 Away\r\nX: y\r\n\r\nno", b"", true),
            records(1, get, b"", ANSWER, b"", false),
        ]
        .concat();
        let first = exchanges(&all);
        let (once, notes) = written(&mut http::Writer::default(), &first);
        assert_eq!(notes.len(), 11, "{notes:#?}");
        let (read, error) = read_http(&once, 4096);
        assert!(error.is_none() && read.len() == first.len(), "{error:?}");
        let (twice, notes) = written(&mut http::Writer::default(), &read);
        assert!(twice == once, "{}\n{}", once[..3000].escape_ascii(), twice[..3000].escape_ascii());
        assert_eq!(notes, Vec::<String>::new());
        let (again, _) = read_http(&twice, 7);
        assert!(wire(&again) == wire(&read));
    }

    #[test]
    fn messages_that_are_cut_anywhere_give_what_was_whole() {
        let whole = exchanges(
            &[records(1, PARAMS, b"hello", ANSWER, b"", true), records(1, PARAMS, b"", ANSWER, b"", true)].concat(),
        );
        let (bytes, _) = written(&mut http::Writer::default(), &whole);
        let (first, _) = written(&mut http::Writer::default(), &whole[..1]);
        for cut in 0..bytes.len() {
            let (found, error) = read_http(&bytes[..cut], 1000);
            let complete = found.iter().filter(|exchange| exchange.is_complete()).count();
            assert_eq!(complete, usize::from(cut >= first.len()), "cut at {cut}");
            assert!(found.len() <= complete + 1);
            // Between messages nothing is missing.
            let is_between = cut == 0 || cut == first.len() || found.len() == complete + 1 && error.is_none();
            assert_eq!(error.is_none(), is_between, "cut at {cut}: {error:?}");
        }
    }

    #[test]
    fn what_is_no_message_is_an_error_that_says_where() {
        let get = "GET / HTTP/1.1\r\n\r\n";
        for (bytes, offset, expected) in [
            ("\0\r\n\r\n".to_owned(), 0, "the head of a request"),
            (format!("{get}nothing\r\n\r\n"), 18, "the head of an answer"),
            ("GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n".into(), 0, "one length of the body"),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n".into(), 0, "one length of the body"),
            (format!("{get}HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"), 65, "the length of a chunk"),
            (
                format!("{get}HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\naXX"),
                69,
                "a line end behind a chunk",
            ),
            (format!("GET /{} HTTP/1.1\r\n", "x".repeat(300_000)), 0, "the head of a request of at most"),
        ] {
            let (_, error) = read_http(bytes.as_bytes(), 1000);
            let Some(ExchangeReadError::Form(error)) = error else { panic!("{bytes}: {error:?}") };
            assert!(error.offset == offset && error.expected.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn an_answer_may_end_with_the_file_and_have_others_before_it() {
        let bytes =
            b"GET / HTTP/1.1\r\n\r\nHTTP/1.1 103 Early Hints\r\nX: y\r\n\r\nHTTP/1.0 200 OK\r\n\r\nall the rest";
        let (found, error) = read_http(bytes, 5);
        assert!(error.is_none() && found.len() == 1 && found[0].is_complete());
        assert_eq!(found[0].stdout.first(100).unwrap(), b"Status: 200 OK\r\n\r\nall the rest");
    }

    #[test]
    fn folders_read_and_written_a_second_time_are_the_same() {
        let odd: &[(&[u8], &[u8])] =
            &[(b"A", b"1\n'$(x)`\xff"), (b"", b"x"), (b"B=C", b"x"), (b"N", b"\0"), (b"A", b"2"), (b"-u", b"x")];
        let all = [
            records(1, PARAMS, b"in\0put", ANSWER, b"oh", true),
            records(2, odd, b"", b"", b"", true),
            records(3, odd, &vec![b'x'; 100_000], b"out", b"", false),
            records(9, &[], b"", b"", b"", true),
        ]
        .concat();
        let folder = tempfile::tempdir().unwrap();
        let files = |folder: &std::path::Path| {
            let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.sort();
            files
                .into_iter()
                .map(|file| (file.file_name().unwrap().to_owned(), fs::read(&file).unwrap()))
                .collect::<Vec<_>>()
        };
        for (at, exchange) in exchanges(&all).iter().enumerate() {
            let [once, twice] = ["once", "twice"].map(|name| folder.path().join(format!("{at}-{name}")));
            cgi::write(exchange, &once).unwrap();
            assert!(cgi::is_exchange(&once));
            let read = cgi::read(&once, ConnectionId(1), &Spool::default()).unwrap();
            assert_eq!(cgi::write(&read, &twice).unwrap(), Vec::<String>::new());
            assert!(files(&once) == files(&twice), "{at}");
            let again = cgi::read(&twice, ConnectionId(1), &Spool::default()).unwrap();
            assert!(wire(&[again]) == wire(&[read]));
            assert_eq!(cgi::write(exchange, &once).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        }
        let broken = folder.path().join("broken");
        fs::create_dir(&broken).unwrap();
        fs::write(broken.join("environment"), b"A=1\0nothing\0").unwrap();
        let error = cgi::read(&broken, ConnectionId(1), &Spool::default()).unwrap_err();
        assert_eq!(error.to_string(), "at byte 4: expected NAME=VALUE and a NUL in environment, got \"nothing\"");
    }

    #[test]
    fn a_program_is_run_with_exactly_the_environment_and_the_input() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("it's a program");
        let params: &[(&[u8], &[u8])] = &[
            (b"SCRIPT_FILENAME", &[b"proxy:fcgi://127.0.0.1:9000", program.as_os_str().as_bytes(), b"?x"].concat()),
            (b"A", b"line\nit's \"quoted\" $HOME `id` \\ \xff \xc3\xa9"),
            (b"-i", b"--"),
            (b"a.b c", b"$(exit 1)"),
            (b"EMPTY", b""),
        ];
        let exchange = folder.path().join("exchange");
        cgi::write(&exchanges(&records(1, params, b"in\0put", b"", b"", true))[0], &exchange).unwrap();
        // A script of a shell's would not do: a shell has variables of its own.
        fs::copy("/bin/cat", &program).unwrap();
        let run =
            |program: Option<&str>| Command::new(exchange.join("run")).args(program).current_dir("/").output().unwrap();
        assert_eq!(run(None).stdout, b"in\0put");
        let environment = run(Some("/usr/bin/env")).stdout;
        let mut expected = fs::read(exchange.join("environment")).unwrap();
        expected.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b'\n');
        assert!(environment == expected, "{}\n{}", environment.escape_ascii(), expected.escape_ascii());
        let refused = run(Some("/tmp/a=b"));
        assert_eq!(refused.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&refused.stderr).starts_with("run: expected a path without"), "{refused:?}");
    }

    #[test]
    fn command_lines_look_like_this_and_a_shell_reads_them_back() {
        let binary = vec![0xff; 100];
        let all = [
            records(1, PARAMS, b"it's", ANSWER, b"", true),
            records(
                1,
                &[
                    (b"REQUEST_METHOD", b"DELETE"),
                    (b"REQUEST_URI", b"/x"),
                    (b"HTTPS", b"on"),
                    (b"SERVER_PORT", b"443"),
                    (b"HTTP_ACCEPT", b""),
                ],
                b"",
                ANSWER,
                b"",
                true,
            ),
            records(1, PARAMS, &binary, ANSWER, b"", true),
        ]
        .concat();
        let (bytes, notes) = written(&mut curl::Writer::default(), &exchanges(&all));
        let text = String::from_utf8(bytes).unwrap();
        let expected = r"curl --globoff --path-as-is --header 'Host: example.org:8080' --header 'Accept-Language: de, en;q=0.5' --header 'Cookie: a=1; b=it'\''s' --header 'Cookie: c=2' --header 'Content-Type: text/plain' --header 'User-Agent:' --header 'Accept:' --data-raw 'it'\''s' --header 'Expect:' 'http://example.org:8080/app/a%20b/%C3%A9?q=1&r=two%20words'";
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines[0], notes), (expected, vec![]));
        assert_eq!(
            lines[1],
            "curl --globoff --path-as-is --request 'DELETE' --header 'Host: localhost' --header 'Accept;' --header 'User-Agent:' 'https://localhost/x'"
        );
        assert!(
            lines[2].starts_with("base64 -d <<'END' | curl ") && lines[2].contains(" --data-binary @- "),
            "{}",
            lines[2]
        );
        assert_eq!(*lines.last().unwrap(), "END");
        let script = format!("curl() {{ printf '<%s>' \"$@\"; case $* in *@-*) wc -c ;; esac; }}\n{text}");
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        assert!(output.contains("<--data-raw><it's>") && output.contains("<Cookie: a=1; b=it's>"), "{output}");
        assert!(output.trim_end().ends_with("100"), "{output}");
    }

    #[test]
    fn an_archive_is_what_the_format_asks_for() {
        let all = [
            records(1, PARAMS, b"hello", ANSWER, b"oh", true),
            records(1, PARAMS, &[0xff; 5], b"Content-Type: image/png\n\n\xff\xfe", b"", true),
            records(1, &[(b"REQUEST_METHOD", b"GET")], b"", b"", b"", false),
        ]
        .concat();
        let (bytes, _) = written(&mut har::Writer::default(), &exchanges(&all));
        let archive: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            (&archive["log"]["version"], archive["log"]["entries"].as_array().unwrap().len()),
            (&"1.2".into(), 3)
        );
        let [first, second, third] = [0, 1, 2].map(|at| &archive["log"]["entries"][at]);
        assert_eq!(first["request"]["url"], "http://example.org:8080/app/a%20b/%C3%A9?q=1&r=two%20words");
        assert_eq!(first["request"]["postData"]["text"], "hello");
        assert_eq!(first["request"]["queryString"][1]["value"], "two words");
        assert_eq!(first["request"]["cookies"][1]["name"], "b");
        assert_eq!(first["response"]["status"], 201);
        assert_eq!(first["response"]["content"]["text"], "hello\n");
        assert_eq!(first["response"]["cookies"][0]["value"], "1");
        assert_eq!((&first["_stderr"]["text"], &first["_applicationStatus"]), (&"oh".into(), &7.into()));
        assert_eq!(second["response"]["content"]["encoding"], "base64");
        assert_eq!(second["response"]["content"]["text"], "//4=");
        assert_eq!((&third["response"]["status"], &third["comment"]), (&502.into(), &"not all of it was seen".into()));
        for entry in [first, second, third] {
            for name in ["startedDateTime", "time", "cache", "timings"] {
                assert!(!entry[name].is_null(), "{name}");
            }
        }
        let (empty, _) = written(&mut har::Writer::default(), &[]);
        assert!(
            serde_json::from_slice::<serde_json::Value>(&empty).unwrap()["log"]["entries"]
                .as_array()
                .unwrap()
                .is_empty()
        );
    }

    proptest! {
        #[test]
        fn whatever_is_exchanged_no_form_fails_and_messages_stay_messages(
            params in prop::collection::vec(("[A-Z_]{0,12}|HTTP_[A-Z_]{0,8}|REQUEST_METHOD|CONTENT_LENGTH|REQUEST_URI|PATH_INFO", prop::collection::vec(any::<u8>(), 0..12)), 0..6),
            stdin: Vec<u8>,
            head in "(Status: [2-5][0-9]{2} ?[a-z]{0,3}\n|Content-Length: [0-9]{1,2}\n|X-[a-z]{1,3}: [ -~]{0,5}\n|Location: /x\n){0,4}\n?",
            stdout: Vec<u8>,
            has_end: bool,
        ) {
            let params: Vec<_> = params.iter().map(|(name, value)| (name.as_bytes(), &value[..])).collect();
            let all = exchanges(&records(1, &params, &stdin, &[head.as_bytes(), &stdout].concat(), b"", has_end));
            written(&mut curl::Writer::default(), &all);
            let (archive, _) = written(&mut har::Writer::default(), &all);
            serde_json::from_slice::<serde_json::Value>(&archive).unwrap();
            let (once, _) = written(&mut http::Writer::default(), &all);
            let (read, error) = read_http(&once, 100);
            prop_assert!(error.is_none(), "{}: {error:?}", once.escape_ascii());
            let (twice, _) = written(&mut http::Writer::default(), &read);
            prop_assert!(once == twice, "{}\n{}", once.escape_ascii(), twice.escape_ascii());
        }

        #[test]
        fn any_bytes_are_messages_or_an_error(bytes: Vec<u8>) {
            read_http(&bytes, 3);
            read_http(&[b"GET / HTTP/1.1\r\n\r\nHTTP/1.1 200 OK\r\n", &bytes[..]].concat(), 3);
        }
    }

    #[test]
    fn a_form_is_recognised_by_its_first_bytes() {
        let table: [(&[u8], Option<Form>); 13] = [
            (b"{\"v\":1,\"connection\":1", Some(Form::Json)),
            (b"gatespan recording 1\n", Some(Form::Tap)),
            (b"\xd4\xc3\xb2\xa1\x02\0\x04\0", Some(Form::Pcap)),
            (b"\xa1\xb2\x3c\x4d\0\x02\0\x04", Some(Form::Pcap)),
            (b"\x34\xcd\xb2\xa1\x02\0\x04\0", Some(Form::Pcap)),
            (b"\x0a\x0d\x0d\x0a\0\0\0\x1c", Some(Form::Pcapng)),
            (b"GET / HTTP/1.1\r\n", Some(Form::Http)),
            (b"M-SEARCH * HTTP/1.1\r\n", Some(Form::Http)),
            (b"\x01\x01\0\x01\0\x08\0\0", Some(Form::Fastcgi)),
            (b"\x01", Some(Form::Fastcgi)),
            (b"", None),
            (b"{}", None),
            (b"\0\0", None),
        ];
        for (start, expected) in table {
            assert_eq!(recognise(start), expected, "{}", start.escape_ascii());
        }
    }
}
