//! What FastCGI servers in the field are known to do where the specification says something else, or nothing: each case a test of its name.
//! Whatever it is, the answer passes, or the request has a status of its own, or the client can see that its answer was cut; and no answer
//! reaches another request.

use super::*;

/// The answer to a request that is sent after another on a kept connection, if it can be: what the first left behind must not be in it.
async fn after(first: Script) -> ((u16, Result<String, String>), (u16, Result<String, String>), usize) {
    let server = Scripted::new([first, vec![Step::Request, Step::Send(answer("the second's own"))]]);
    let forwarder = forwarder(&server, kept());
    let one = ask(&forwarder, get("first")).await;
    settle().await;
    (one, ask(&forwarder, get("second")).await, server.connections())
}

fn sent(bytes: impl Into<Vec<u8>>) -> Script {
    vec![Step::Request, Step::Send(bytes.into())]
}

fn whole_answer() -> Vec<u8> {
    [HEAD, b"hello"].concat()
}

fn is_cut((status, text): &(u16, Result<String, String>)) -> bool {
    *status == 200 && text.is_err()
}

// Odd, and an answer all the same.

#[tokio::test]
async fn records_of_one_byte() {
    let bytes = whole_answer().iter().flat_map(|byte| stdout(&[*byte])).collect::<Vec<_>>();
    let script = sent([bytes.clone(), stdout(b""), end(0, 0)].concat());
    assert_eq!(ask_once(script, get("records-of-one-byte")).await, ok("hello"));
    // And read a byte at a time.
    let script = vec![Step::Request, Step::SendInPieces([bytes, end(0, 0)].concat(), 1)];
    assert_eq!(ask_once(script, get("records-of-one-byte")).await, ok("hello"));
}

#[tokio::test]
async fn any_padding() {
    for padding in 0..=255 {
        let bytes = [
            record(RecordType::Stdout, 1, HEAD, padding),
            record(RecordType::Stdout, 1, b"hello", padding),
            record(RecordType::Stderr, 1, b"", padding),
            record(RecordType::Stdout, 1, b"", padding),
            record(RecordType::EndRequest, 1, &[0; 8], padding),
        ];
        assert_eq!(ask_once(sent(bytes.concat()), get("any-padding")).await, ok("hello"), "{padding}");
    }
}

#[tokio::test]
async fn bare_line_feeds() {
    let script = sent([stdout(b"Status: 200\nContent-Type: text/plain\n\nhello"), end(0, 0)].concat());
    assert_eq!(ask_once(script, get("bare-line-feeds")).await, ok("hello"));
}

#[tokio::test]
async fn mixed_line_ends() {
    for head in ["Content-Type: a\r\nX-A: b\n\n", "Content-Type: a\nX-A: b\r\n\r\n", "X-A: b\n\r\n", "X-A: b\r\n\n"] {
        let script = sent([stdout(format!("{head}hello").as_bytes()), end(0, 0)].concat());
        assert_eq!(ask_once(script, get("mixed-line-ends")).await, ok("hello"), "{head:?}");
    }
}

#[tokio::test]
async fn stderr_between_stdout() {
    let bytes = whole_answer().iter().flat_map(|byte| [stdout(&[*byte]), stderr(b"x")].concat()).collect::<Vec<_>>();
    let script = sent([stderr(b"first\n"), bytes, stderr(b"\nlast"), stdout(b""), stderr(b""), end(0, 0)].concat());
    assert_eq!(ask_once(script, get("stderr-between-stdout")).await, ok("hello"));
}

#[tokio::test]
async fn a_missing_end_of_stdout() {
    let script = sent([stdout(&whole_answer()), end(0, 0)].concat());
    let (one, two, connections) = after([script.clone(), script].concat()).await;
    // It is none that keeps the connection from being kept.
    assert_eq!((one, two, connections), (ok("hello"), ok("hello"), 1));
}

#[tokio::test]
async fn a_non_zero_application_status() {
    let log = log::capture();
    for status in [1, 255, 256, u32::MAX] {
        let id = format!("application-status-{status}");
        let script = sent([stdout(&whole_answer()), stdout(b""), end(status, 0)].concat());
        assert_eq!(ask_once(script, get(&id)).await, ok("hello"), "{status}");
        let line = format!("application_status={status}");
        assert!(log.of(&id).iter().any(|logged| logged.contains(&line)), "{:#?}", log.of(&id));
    }
}

#[tokio::test]
async fn statuses_204_304_and_404_pass_as_they_are() {
    for (status, body) in [(204, ""), (304, ""), (404, "not here")] {
        let script = sent([stdout(format!("Status: {status}\r\n\r\n{body}").as_bytes()), end(0, 0)].concat());
        assert_eq!(ask_once(script, get("statuses")).await, (status, Ok(body.to_owned())));
    }
}

#[tokio::test]
async fn a_304_carries_no_content_length() {
    let server = Scripted::new([sent([stdout(b"Status: 304\r\nContent-Length: 5\r\n\r\n"), end(0, 0)].concat())]);
    let Response { head, .. } = driver::answer(forwarder(&server, kept()), get("304")).await;
    assert_eq!((head.status.code(), head.headers.get("Content-Length")), (304, None));
}

#[tokio::test]
async fn an_answer_behind_a_head_that_was_cut_at_any_byte() {
    let head = b"Status: 200 OK\r\nContent-Type: text/plain\r\nX-Long: value\r\n\r\n";
    for at in 0..=head.len() {
        let bytes = [stdout(&head[..at]), stdout(&[&head[at..], b"hello"].concat()), end(0, 0)];
        // An empty STDOUT is its end, and not a record with nothing in it.
        let expected = if at == 0 { 502 } else { 200 };
        let came = ask_once(sent(bytes.concat()), get("cut-head")).await;
        assert_eq!(came.0, expected, "{at}: {came:?}");
    }
}

// Closed, cut and unfinished.

#[tokio::test]
async fn closed_before_the_head() {
    for bytes in [vec![], stdout(b"Content-Type: text/pl"), stderr(b"a message\n"), vec![1, 6, 0]] {
        assert_eq!(ask_once(sent(bytes), get("closed-before-the-head")).await.0, 502);
    }
}

#[tokio::test]
async fn a_body_shorter_than_announced() {
    let short = stdout(b"Content-Length: 100\r\n\r\nshort");
    for ending in [vec![], end(0, 0), [stdout(b""), end(0, 0)].concat()] {
        let came = ask_once(sent([short.clone(), ending].concat()), get("short")).await;
        assert!(is_cut(&came), "{came:?}");
    }
}

#[tokio::test]
async fn no_end_request() {
    for ending in [vec![], stdout(b"")] {
        let came = ask_once(sent([stdout(&whole_answer()), ending].concat()), get("no-end-request")).await;
        assert!(is_cut(&came), "{came:?}");
    }
    // It was whole all the same where its length says so.
    let came = ask_once(sent(stdout(b"Content-Length: 5\r\n\r\nhello")), get("no-end-request")).await;
    assert!(came == ok("hello") || is_cut(&came), "{came:?}");
}

#[tokio::test]
async fn two_end_requests() {
    for second in [end(0, 0), end(9, 1), [end(0, 0), end(0, 0)].concat()] {
        let first = sent([answer("hello"), second].concat());
        let rest = vec![Step::Request, Step::Send(answer("a stranger's"))];
        let (one, two, connections) = after([first, rest].concat()).await;
        assert_eq!((one, two, connections), (ok("hello"), ok("the second's own"), 2));
    }
}

#[tokio::test]
async fn an_end_request_that_is_too_short_or_too_long() {
    for len in [0, 1, 4, 7] {
        let end = record(RecordType::EndRequest, 1, &vec![0; len], 0);
        assert_eq!(ask_once(sent(end.clone()), get("short-end")).await.0, 502, "{len}");
        let came = ask_once(sent([stdout(&whole_answer()), end].concat()), get("short-end")).await;
        assert!(is_cut(&came), "{len}: {came:?}");
    }
    for len in [9, 16, 65_535] {
        let end = record(RecordType::EndRequest, 1, &vec![0; len], 0);
        let came = ask_once(sent([stdout(&whole_answer()), end].concat()), get("long-end")).await;
        assert!(came == ok("hello") || is_cut(&came), "{len}: {came:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn half_closed_before_the_head() {
    let began = Instant::now();
    let script = vec![Step::Request, Step::CloseWriting, Step::Closed];
    let server = Scripted::new([script]);
    assert_eq!(ask(&forwarder(&server, kept()), get("half-closed")).await.0, 502);
    // It is not waited for any longer, and the connection is closed from this side too.
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    server.finished(1).await;
}

#[tokio::test(start_paused = true)]
async fn half_closed_in_the_answer() {
    let began = Instant::now();
    let script = vec![Step::Request, Step::Send(stdout(&whole_answer())), Step::CloseWriting, Step::Closed];
    let server = Scripted::new([script]);
    let came = ask(&forwarder(&server, kept()), get("half-closed")).await;
    assert!(is_cut(&came), "{came:?}");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    server.finished(1).await;
}

#[tokio::test(start_paused = true)]
async fn php_fpm_half_closes_and_drains_without_a_time_limit() {
    // After its answer it waits for the other side to close, which occupies a process.
    let began = Instant::now();
    let script = vec![Step::Request, Step::Send(answer("hello")), Step::CloseWriting, Step::Closed];
    let server = Scripted::new([script]);
    assert_eq!(ask(&forwarder(&server, Config::default()), get("drains")).await, ok("hello"));
    server.finished(1).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

// Silent and slow.

#[tokio::test(start_paused = true)]
async fn silent() {
    for script in [vec![Step::Hang], vec![Step::Request, Step::Hang], vec![Step::Params, Step::Hang]] {
        let began = Instant::now();
        assert_eq!(ask_once(script, post("silent", "quantity=100")).await.0, 504);
        assert_eq!(began.elapsed().as_secs(), Config::default().head_timeout.as_secs());
    }
}

#[tokio::test(start_paused = true)]
async fn slow() {
    // A byte every 20 s comes in time for each limit but that of the head, and that of all of it.
    let slowly = |bytes: &[u8]| -> Script {
        bytes.iter().flat_map(|byte| [Step::Sleep(Duration::from_secs(20)), Step::Send(vec![*byte])]).collect()
    };
    // In the middle of a record, too.
    let bytes = stdout(b"0123456789");
    let (header, content) = bytes.split_at(8);
    let body = [vec![Step::Send(header.to_vec())], slowly(content), vec![Step::Send(end(0, 0))]].concat();
    let after_the_head = [sent(stdout(HEAD)), body.clone()].concat();
    assert_eq!(ask_once(after_the_head.clone(), get("slow")).await, ok("0123456789"));
    let config = Config { timeout: Some(Duration::from_secs(100)), ..Config::default() };
    let came = ask(&forwarder(&Scripted::new([after_the_head]), config), get("slow")).await;
    assert!(is_cut(&came), "{came:?}");
    let head_too = [vec![Step::Request], slowly(&stdout(HEAD)), body].concat();
    assert_eq!(ask_once(head_too, get("slow")).await.0, 504);
}

// What is no answer.

#[tokio::test]
async fn garbage() {
    for garbage in
        [&[0xff; 300][..], &[0; 300], b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"Status: 200\r\n\r\nhello"]
    {
        assert_eq!(ask_once(sent(garbage), get("garbage")).await.0, 502);
        let came = ask_once(sent([&stdout(&whole_answer()), garbage].concat()), get("garbage")).await;
        assert!(is_cut(&came), "{came:?}");
        let behind = [sent([&answer("hello"), garbage].concat()), sent(answer("a stranger's"))].concat();
        assert_eq!(after(behind).await, (ok("hello"), ok("the second's own"), 2));
    }
}

#[tokio::test]
async fn unknown_types() {
    for number in [0, 12, 13, 100, 255] {
        for id in [0, 1, 7] {
            let unknown = record(RecordType::from(number), id, b"what is this", 3);
            let bytes = [&unknown, &stdout(HEAD)[..], &unknown, &stdout(b"hello"), &unknown, &end(0, 0)].concat();
            let came = ask_once(sent(bytes), get("unknown-types")).await;
            assert_eq!(came, ok("hello"), "{number} {id}");
        }
    }
}

#[tokio::test]
async fn records_that_only_a_web_server_sends() {
    for record_type in [RecordType::BeginRequest, RecordType::AbortRequest, RecordType::Params, RecordType::Stdin] {
        let bytes = [record(record_type, 1, &[0; 8], 0), stdout(&whole_answer()), end(0, 0)].concat();
        let came = ask_once(sent(bytes), get("a-web-servers")).await;
        assert!(came == ok("hello") || came.0 == 502, "{record_type:?}: {came:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_ids() {
    for id in [2, 256, 257, u16::MAX] {
        let theirs = [
            record(RecordType::Stdout, id, b"Content-Type: text/plain\r\n\r\na stranger's", 0),
            record(RecordType::EndRequest, id, &[0; 8], 0),
        ]
        .concat();
        // Between the records of the request itself they are nobody's.
        let bytes = [&theirs, &stdout(HEAD)[..], &theirs, &stdout(b"hello"), &theirs, &end(0, 0)].concat();
        assert_eq!(ask_once(sent(bytes), get("wrong-ids")).await, ok("hello"), "{id}");
        // Alone they are no answer.
        assert_eq!(ask_once([sent(theirs.clone()), vec![Step::Hang]].concat(), get("wrong-ids")).await.0, 504, "{id}");
        assert_eq!(ask_once(sent(theirs), get("wrong-ids")).await.0, 502, "{id}");
    }
}

#[tokio::test]
async fn php_fpm_ignores_request_ids() {
    // So that each request has the only one that no server can mistake.
    let script = [sent(answer("one")), sent(answer("two")), sent(answer("three"))].concat();
    let server = Scripted::new([script]);
    let forwarder = forwarder(&server, kept());
    for text in ["one", "two", "three"] {
        assert_eq!(ask(&forwarder, get("ids")).await, ok(text));
        settle().await;
    }
    assert!(server.requests().iter().all(|request| request.ids == [1]), "{:?}", server.requests());
}

#[tokio::test]
async fn oversized_heads() {
    let config = |max_head_len| Config { max_head_len, ..Config::default() };
    let head = format!("X-A: {}\r\n\r\n", "x".repeat(1000));
    let bytes = [stdout(head.as_bytes()), stdout(b"hello"), end(0, 0)].concat();
    for (limit, status) in [(head.len(), 200), (head.len() - 1, 502), (100, 502)] {
        let server = Scripted::new([sent(bytes.clone())]);
        let came = ask(&forwarder(&server, config(limit)), get("oversized")).await;
        assert_eq!(came.0, status, "{limit}: {came:?}");
    }
    let many = format!("{}\r\n", "X-A: b\r\n".repeat(256));
    for (fields, status) in [(256, 200), (255, 502)] {
        let server = Scripted::new([sent([stdout(many.as_bytes()), end(0, 0)].concat())]);
        let config = Config { max_head_fields: fields, ..Config::default() };
        assert_eq!(ask(&forwarder(&server, config), get("oversized")).await.0, status, "{fields}");
    }
}

#[tokio::test]
async fn response_splitting() {
    for head in ["X-A: b\rX-C: d", "X-A: b\0", "X-A\r: b", "Status: 200\rOK", "Status: 2\x000", "X\0A: b", " X-A: b"] {
        let script = sent([stdout(format!("{head}\r\n\r\nhello").as_bytes()), end(0, 0)].concat());
        assert_eq!(ask_once(script, get("splitting")).await.0, 502, "{head:?}");
    }
}

// Refusals.

#[tokio::test]
async fn overloaded_alone_is_no_empty_answer() {
    assert_eq!(ask_once(sent(end(0, 2)), get("overloaded")).await.0, 503);
    assert_eq!(ask_once(sent([stdout(b""), end(0, 2)].concat()), get("overloaded")).await.0, 503);
    // What it said on STDOUT as well is the answer.
    let said = [stdout(b"Status: 503\r\nRetry-After: 5\r\n\r\nlater"), stdout(b""), end(0, 2)].concat();
    assert_eq!(ask_once(sent(said), get("overloaded")).await, (503, Ok("later".into())));
}

#[tokio::test]
async fn an_unknown_role() {
    let log = log::capture();
    let asked = async |script: Script, id: &str| {
        let config = Config { role: Some(Role::Authorizer), ..Config::default() };
        ask(&forwarder(&Scripted::new([script]), config), get(id)).await
    };
    assert_eq!(asked(sent(end(0, 3)), "role-answered").await.0, 502);
    let lines = log.of("role-answered");
    assert!(lines.iter().any(|line| line.contains("no role Authorizer")), "{lines:#?}");
    // Most servers, php-fpm among them, just close.
    assert_eq!(asked(vec![Step::Params], "role-closed").await.0, 502);
}

// What of the request they can't take.

#[tokio::test]
async fn a_reset_in_the_middle_of_the_params() {
    // As php-fpm does at about 100 KB of them.
    for method in ["GET", "POST"] {
        let mut environ = environ(method, "many-params");
        environ.set("X_LONG", vec![b'x'; 300_000]).unwrap();
        let server = Scripted::new([vec![Step::Read(100_000)]]);
        let config = Config { max_params_len: 1 << 20, ..Config::default() };
        assert_eq!(ask(&forwarder(&server, config), environ).await.0, 502, "{method}");
    }
}

#[tokio::test]
async fn a_close_in_the_middle_of_the_body() {
    static BODY: &[u8] = &[b'x'; 500_000];
    let upload = || environ("POST", "unread").with_input(pieces(BODY, 50_000, Some(500_000)));
    let server = Scripted::new([vec![Step::Params, Step::Read(100_000)]]);
    assert_eq!(ask(&forwarder(&server, Config::default()), upload()).await.0, 502);
    // It had answered before.
    let early = vec![Step::Params, Step::Read(100_000), Step::Send(answer("hello"))];
    assert_eq!(ask(&forwarder(&Scripted::new([early]), Config::default()), upload()).await, ok("hello"));
}

#[tokio::test]
async fn servers_take_the_first_or_the_last_of_duplicate_params() {
    // So that they get one of each. The gateways make one of what a web server sent twice.
    let mut environ = get("duplicates");
    for value in ["a", "b"] {
        environ.set("X_TWICE", value).unwrap();
    }
    let server = Scripted::new([sent(answer("hello"))]);
    assert_eq!(ask(&forwarder(&server, Config::default()), environ).await, ok("hello"));
    let params = &server.requests()[0].params;
    assert_eq!(params.iter().filter(|(name, _)| name == b"X_TWICE").count(), 1);
}

#[tokio::test]
async fn php_fpm_drops_a_connection_that_stays_idle_after_accept() {
    // It is made when there is a request for it, and no sooner.
    let server = Scripted::new([sent(answer("hello"))]);
    let forwarder = forwarder(&server, kept());
    settle().await;
    assert_eq!(server.connections(), 0);
    assert_eq!(ask(&forwarder, get("idle")).await, ok("hello"));
}

// GET_VALUES.

/// The pairs of a GET_VALUES_RESULT.
fn values(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut content = Vec::new();
    for (name, value) in pairs {
        content.extend([name.len() as u8, value.len() as u8]);
        content.extend(name.bytes().chain(value.bytes()));
    }
    content
}

fn values_result(pairs: &[(&str, &str)]) -> Vec<u8> {
    record(RecordType::GetValuesResult, 0, &values(pairs), 0)
}

/// Whether a server that answers so is taken for one that multiplexes. Requests get their answers, either way.
async fn multiplexes(probed: Script) -> bool {
    let script = [sent(answer("hello")), vec![Step::Closed]].concat();
    let server = Scripted::new([probed.clone(), script.clone(), script]);
    let shared = Multiplexed::new(server.clone(), 32);
    let forwarder = Forwarder::with_connectors([("server", shared)], Config::default()).unwrap();
    for _ in 0..2 {
        assert_eq!(whole(driver::answer(forwarder.clone(), get("values")).await).await, ok("hello"), "{probed:?}");
        settle().await;
    }
    // One was asked for the values. A connection that is shared is to be kept, whether or not those for one request are.
    assert_eq!(server.connections(), 3, "{probed:?}");
    server.requests().iter().all(|request| request.keeps_connection)
}

#[tokio::test(start_paused = true)]
async fn get_values_answered_oddly() {
    const NAME: &str = "FCGI_MPXS_CONNS";
    let repeated = values(&[(NAME, "0"); 1000]);
    for (name, probed) in [
        ("closed at once", vec![]),
        ("silence", vec![Step::Hang]),
        ("nothing", vec![Step::Send(values_result(&[]))]),
        ("no", vec![Step::Send(values_result(&[(NAME, "0")]))]),
        ("yes in words", vec![Step::Send(values_result(&[(NAME, "yes")]))]),
        ("an empty value", vec![Step::Send(values_result(&[(NAME, "")]))]),
        ("another name", vec![Step::Send(values_result(&[("FCGI_MAX_REQS", "1")]))]),
        ("the name a thousand times", vec![Step::Send(record(RecordType::GetValuesResult, 0, &repeated, 7))]),
        ("half a pair", vec![Step::Send(record(RecordType::GetValuesResult, 0, &[200, 1, b'x'], 0))]),
        ("a pair of 2 GiB", vec![Step::Send(record(RecordType::GetValuesResult, 0, &[0xff; 40], 0))]),
        ("the id of a request", vec![Step::Send(record(RecordType::GetValuesResult, 1, &values(&[(NAME, "1")]), 0))]),
        ("UNKNOWN_TYPE", vec![Step::Send(record(RecordType::UnknownType, 0, &[9, 0, 0, 0, 0, 0, 0, 0], 0))]),
        ("a short UNKNOWN_TYPE", vec![Step::Send(record(RecordType::UnknownType, 0, &[9], 0))]),
        ("an answer to no request", vec![Step::Send(answer("hello"))]),
        ("garbage", vec![Step::Send(vec![0xff; 100])]),
    ] {
        assert!(!multiplexes(probed).await, "{name}");
    }
    // Said in more words than it takes, it is said.
    let all = [(NAME, "1"), ("FCGI_MAX_CONNS", "100"), ("FCGI_MAX_REQS", "100"), ("X", ""), ("", "")];
    let padded = record(RecordType::GetValuesResult, 0, &values(&all), 255);
    let unknown = record(RecordType::Unknown(77), 0, b"?", 0);
    for probed in
        [vec![Step::Send(padded.clone())], vec![Step::SendInPieces([unknown, padded].concat(), 1), Step::Hang]]
    {
        assert!(multiplexes(probed).await);
    }
}
