//! Why the upstream is not built on the crate fastcgi-client: its faults in version 0.12.0, and beside each what the forwarder makes of the same
//! server. The day a new version mends one, the test of it fails, so that the choice is looked at again.
#![cfg(all(feature = "fastcgi", feature = "upstream-fastcgi"))]

#[path = "support/scripted.rs"]
mod scripted;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use fastcgi_client::response::Content;
use fastcgi_client::{Client, Params, Request};
use futures_util::{FutureExt, StreamExt};
use gatespan::application::{Environ, Input, Variables, driver};
use gatespan::protocol::fastcgi::RecordType;
use gatespan::upstream::fastcgi::{Config, Connect, Forwarder};
use scripted::{Script, Scripted, Step, answer, end, record, stdout};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::time::timeout;

const LOOK_AGAIN: &str = "fastcgi-client has mended this: look again at what the upstream is built on";

async fn connection(script: Script) -> DuplexStream {
    Scripted::new([script]).connect().await.unwrap()
}

/// What our forwarder makes of the same server: the status and the body, or that the body was cut.
async fn ours(scripts: impl IntoIterator<Item = Script>, requests: &[&'static [u8]]) -> Vec<(u16, Option<String>)> {
    let config = Config { keep_alive: true, ..Config::default() };
    let forwarder = Forwarder::with_connectors([("scripted", Scripted::new(scripts))], config).unwrap();
    let mut came = Vec::new();
    for body in requests {
        let mut variables = Variables::new();
        variables.set("REQUEST_METHOD", "POST").unwrap();
        variables.set("BYTES", b"\xff\xfe").unwrap();
        let environ = Environ::new(variables).with_input(Input::from_bytes(*body));
        let mut response = driver::answer(forwarder.clone(), environ).await;
        let text = response.body.read_to_end(1 << 24).await.ok();
        came.push((response.head.status.code(), text.map(|text| String::from_utf8_lossy(&text).into_owned())));
    }
    came
}

/// What the client makes of that server: STDOUT, and the error that ended it.
async fn theirs(script: Script) -> (String, Option<String>) {
    let client = Client::new_tokio(connection(script).await);
    let exchange = async {
        let mut stream = client.execute_once_stream(Request::new(Params::default(), &b""[..])).await.unwrap();
        let mut came = Vec::new();
        while let Some(content) = stream.next().await {
            match content {
                Ok(Content::Stdout(data)) => came.extend_from_slice(&data),
                Ok(Content::Stderr(_)) => {}
                Err(error) => return (came, Some(error.to_string())),
            }
        }
        (came, None)
    };
    let (came, error) = timeout(Duration::from_secs(20), exchange).await.expect("it comes to an end");
    (String::from_utf8(came).unwrap(), error)
}

#[tokio::test]
async fn a_short_end_request_is_a_panic() {
    let script = vec![Step::Request, Step::Send(record(RecordType::EndRequest, 1, &[0; 4], 0)), Step::Hang];
    let client = Client::new_tokio(connection(script.clone()).await);
    let exchange = client.execute_once(Request::new(Params::default(), &b""[..]));
    let came = AssertUnwindSafe(timeout(Duration::from_secs(20), exchange)).catch_unwind().await;
    assert!(came.is_err(), "{LOOK_AGAIN}");
    assert_eq!(ours([script], &[b""]).await[0].0, 502);
}

#[tokio::test]
async fn the_end_of_the_connection_is_taken_for_the_end_of_the_answer() {
    let script = vec![Step::Request, Step::Send(stdout(b"Content-Type: text/plain\r\n\r\nhal"))];
    let mut client = Client::new_keep_alive_tokio(connection(script.clone()).await);
    let mut stream = client.execute_stream(Request::new(Params::default(), &b""[..])).await.unwrap();
    let mut came = Vec::new();
    while let Some(content) = stream.next().await {
        match content {
            Ok(Content::Stdout(data)) => came.extend_from_slice(&data),
            Ok(Content::Stderr(_)) => {}
            Err(error) => panic!("{LOOK_AGAIN}: {error}"),
        }
    }
    assert!(came.ends_with(b"hal"));
    assert_eq!(ours([script], &[b""]).await, [(200, None)], "ours is cut");
}

#[tokio::test]
async fn an_answer_that_was_dropped_reaches_the_next_request() {
    let first =
        vec![Step::Request, Step::Send(answer("a stranger's")), Step::Request, Step::Send(answer("mine")), Step::Hang];
    let mut client = Client::new_keep_alive_tokio(connection(first).await);
    drop(client.execute_stream(Request::new(Params::default(), &b""[..])).await.unwrap());
    let second = client.execute(Request::new(Params::default(), &b""[..])).await.unwrap();
    let stdout = String::from_utf8_lossy(&second.stdout.unwrap_or_default()).into_owned();
    assert!(stdout.ends_with("a stranger's"), "{LOOK_AGAIN}: {stdout}");

    let hangs =
        vec![Step::Request, Step::Sleep(Duration::from_millis(50)), Step::Send(answer("a stranger's")), Step::Hang];
    let server = Scripted::new([hangs, vec![Step::Request, Step::Send(answer("mine"))]]);
    let config = Config { keep_alive: true, ..Config::default() };
    let forwarder = Forwarder::with_connectors([("scripted", server)], config).unwrap();
    let dropped = driver::call(forwarder.clone(), Environ::new(Variables::new()));
    timeout(Duration::from_millis(20), dropped).await.expect_err("it is dropped before its answer");
    tokio::time::sleep(Duration::from_millis(60)).await;
    let mut response = driver::call(forwarder, Environ::new(Variables::new())).await.unwrap();
    assert_eq!(response.body.read_to_end(100).await.unwrap(), "mine");
}

#[tokio::test]
async fn the_whole_body_is_written_before_anything_is_read() {
    // A server that sends while it reads, with the buffers of one connection between.
    static BODY: &[u8] = &[b'x'; 500_000];
    let mut script = vec![Step::Params, Step::Send(stdout(b"Content-Type: text/plain\r\n\r\n"))];
    script.extend((0..20).map(|_| Step::Send(stdout(&[b'y'; 20_000]))));
    script.extend([Step::Request, Step::Send(end(0, 0))]);
    let client = Client::new_tokio(connection(script.clone()).await);
    let exchange = client.execute_once(Request::new(Params::default(), BODY));
    assert!(timeout(Duration::from_secs(1), exchange).await.is_err(), "{LOOK_AGAIN}");
    let came = timeout(Duration::from_secs(20), ours([script], &[BODY])).await.expect("ours reads while it writes");
    assert_eq!(came[0].1.as_ref().map(String::len), Some(400_000));
}

#[tokio::test]
async fn the_application_status_is_lost() {
    let client = Client::new_tokio(connection(vec![Step::Request, Step::Send(end(938, 0))]).await);
    let response = client.execute_once(Request::new(Params::default(), &b""[..])).await.unwrap();
    assert!(!format!("{response:?}").contains("938"), "{LOOK_AGAIN}: {response:?}");
    assert_eq!(ours([vec![Step::Request, Step::Send(end(938, 0))]], &[b""]).await[0].0, 502);
}

#[tokio::test]
async fn a_param_can_only_be_text() {
    // `custom` takes what becomes a `Cow<str>`: if it takes bytes some day, this compiles no more, and the choice is to be looked at again.
    fn text_only<'a>(value: impl Into<std::borrow::Cow<'a, str>>) -> Params<'a> {
        Params::default().custom("BYTES", value)
    }
    drop(text_only("text"));
    let server = Scripted::new([vec![Step::Request, Step::Send(answer("ok"))]]);
    let forwarder = Forwarder::with_connectors([("scripted", server.clone())], Config::default()).unwrap();
    let mut variables = Variables::new();
    variables.set("BYTES", b"\xff\xfe").unwrap();
    driver::call(forwarder, Environ::new(variables)).await.unwrap();
    assert_eq!(server.requests()[0].params, [(b"BYTES".to_vec(), b"\xff\xfe".to_vec())]);
}

#[tokio::test]
async fn a_record_of_another_version_is_read_as_one_of_version_1() {
    let mut odd = answer("odd");
    odd[0] = 2;
    let script = vec![Step::Request, Step::Send(odd), Step::Closed];
    let (came, error) = theirs(script.clone()).await;
    assert!(came.ends_with("odd") && error.is_none(), "{LOOK_AGAIN}: {came:?} {error:?}");
    assert_eq!(ours([script], &[b""]).await[0].0, 502);
}

#[tokio::test]
async fn a_record_of_another_request_is_taken_for_this_ones() {
    let strange = record(RecordType::Stdout, 2, b"X-Stranger: yes\r\n", 0);
    let script = vec![Step::Request, Step::Send([strange, answer("mine")].concat()), Step::Closed];
    let (came, error) = theirs(script.clone()).await;
    assert!(came.starts_with("X-Stranger") && error.is_none(), "{LOOK_AGAIN}: {came:?} {error:?}");
    assert_eq!(ours([script], &[b""]).await, [(200, Some("mine".into()))]);
}

#[tokio::test]
async fn a_record_of_an_unknown_type_ends_the_answer() {
    let unknown = record(RecordType::Unknown(42), 1, b"what?", 3);
    let script = vec![Step::Request, Step::Send([unknown, answer("mine")].concat()), Step::Closed];
    let (came, error) = theirs(script.clone()).await;
    assert!(came.is_empty() && error.is_some(), "{LOOK_AGAIN}: {came:?} {error:?}");
    assert_eq!(ours([script], &[b""]).await, [(200, Some("mine".into()))]);
}

/// The params that a server is sent by the client.
async fn recorded(params: Params<'_>) -> scripted::Recorded {
    let server = Scripted::answering("ok");
    let client = Client::new_tokio(server.connect().await.unwrap());
    client.execute_once(Request::new(params, &b""[..])).await.unwrap();
    server.requests().remove(0)
}

/// The same by our forwarder.
async fn recorded_by_ours(params: &[(&str, &str)]) -> scripted::Recorded {
    let server = Scripted::answering("ok");
    let forwarder = Forwarder::with_connectors([("scripted", server.clone())], Config::default()).unwrap();
    let variables: Variables = params.iter().copied().collect();
    driver::call(forwarder, Environ::new(variables)).await.unwrap();
    server.requests().remove(0)
}

#[tokio::test]
async fn a_param_that_is_repeated_is_sent_once() {
    let theirs = recorded(Params::default().custom("HTTP_X", "1").custom("HTTP_X", "2")).await;
    let named = |recorded: &scripted::Recorded| {
        let values = recorded.params.iter().filter(|(name, _)| name == b"HTTP_X");
        values.map(|(_, value)| String::from_utf8(value.clone()).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(named(&theirs), ["2"], "{LOOK_AGAIN}");
    assert_eq!(named(&recorded_by_ours(&[("HTTP_X", "1"), ("HTTP_X", "2")]).await), ["1", "2"]);
}

#[tokio::test]
async fn long_params_are_cut_anywhere_and_padded_beyond_16_bits() {
    let long = "x".repeat(40_000);
    let theirs = recorded(Params::default().custom("A", &*long).custom("B", &*long)).await;
    assert!(
        !theirs.pairs_end_with_records && theirs.longest_record == 65_536,
        "{LOOK_AGAIN}: {}",
        theirs.longest_record
    );
    let ours = recorded_by_ours(&[("A", &long), ("B", &long)]).await;
    assert!(ours.pairs_end_with_records && ours.longest_record <= 65_535, "{}", ours.longest_record);
}

/// Answers as soon as anything has come, and closes with the rest unread, which is a reset.
#[derive(Clone)]
struct Resets;

impl Connect for Resets {
    type Stream = UnixStream;

    async fn connect(&self) -> std::io::Result<UnixStream> {
        let (near, mut far) = UnixStream::pair()?;
        tokio::spawn(async move {
            far.read_u8().await.unwrap();
            far.write_all(&answer("ok")).await.unwrap();
        });
        Ok(near)
    }
}

#[tokio::test]
async fn a_reset_behind_the_answer_hides_its_end() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let client = Client::new_tokio(near);
    let mut stream = client.execute_once_stream(Request::new(Params::default(), &b""[..])).await.unwrap();
    far.write_all(&answer("ok")).await.unwrap();
    // With END_REQUEST, which came with it.
    assert!(matches!(stream.next().await, Some(Ok(Content::Stdout(_)))));
    // Its request is still unread: the second end of STDIN would do.
    drop(far);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let reset = stream.next().await.and_then(Result::err).expect(LOOK_AGAIN);
    assert!(reset.to_string().contains("reset"), "{reset}");

    let forwarder = Forwarder::with_connectors([("resets", Resets)], Config::default()).unwrap();
    let mut response = driver::answer(forwarder, Environ::new(Variables::new())).await;
    assert_eq!((response.head.status.code(), response.body.read_to_end(99).await.unwrap()), (200, "ok".into()));
}

#[tokio::test]
async fn an_empty_body_is_ended_twice() {
    let ends = |bytes: &[u8]| {
        let is_end = |window: &&[u8]| **window == [1, RecordType::Stdin.into(), 0, 1, 0, 0, 0, 0];
        bytes.windows(8).filter(is_end).count()
    };
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let client = Client::new_tokio(near);
    // Nobody answers, so that it ends when the other end is closed.
    let sent = async {
        let mut sent = Vec::new();
        while ends(&sent) < 2 {
            far.read_buf(&mut sent).await.unwrap();
        }
        drop(far);
        ends(&sent)
    };
    let exchange = client.execute_once(Request::new(Params::default(), &b""[..]));
    let both = async { tokio::join!(exchange, sent) };
    let (_, count) = timeout(Duration::from_secs(20), both).await.expect(LOOK_AGAIN);
    assert_eq!(count, 2);

    let server = vec![Step::Request, Step::Send(answer("ok")), Step::Closed];
    assert_eq!(ours([server], &[b""]).await, [(200, Some("ok".into()))]);
    let mut own = gatespan::protocol::fastcgi::WebServerEnd::new(Default::default());
    let id = own.begin(gatespan::protocol::fastcgi::Role::Responder, false, []).unwrap();
    own.end_stdin(id);
    own.end_stdin(id);
    let len = own.output().len();
    let sent = bytes::Buf::copy_to_bytes(own.output(), len);
    assert_eq!(ends(&sent), 1);
}

/// docs/fastcgi-client.md lists no difference without a test, and every test here is on the list.
#[test]
fn every_difference_on_the_list_has_its_test() {
    let list = include_str!("../docs/fastcgi-client.md");
    let tests = [include_str!("fastcgi_client_faults.rs"), include_str!("request.rs")];
    let rows: Vec<_> = list.lines().filter(|line| line.starts_with("| ")).skip(2).collect();
    assert!(rows.len() > 10);
    for row in rows {
        let (_, named) = row.trim_end_matches(" |").rsplit_once("| ").unwrap();
        for name in named.split(", ").map(|name| name.trim_matches('`')) {
            let function = format!("fn {name}(");
            assert!(tests.iter().any(|text| text.contains(&function)), "{name} is no test");
        }
    }
    let own = tests[0].split("#[tokio::test]\nasync fn ").skip(1).filter_map(|rest| rest.split('(').next());
    for name in own {
        assert!(list.contains(&format!("`{name}`")), "{name} is not on the list");
    }
}
