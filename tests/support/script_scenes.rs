//! What a host of CGI programs has to do that is more than one request: events, what scripts leave behind, clients that
//! leave, ways out of the folder, and requests that must not harm each other.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::client::{Client, Upload, get};
use super::{Front, pattern};

/// What is more than one request, in the order in which a fault is easiest to understand.
pub async fn scenes(front: &Front) {
    events(front).await;
    grandchild(front).await;
    works_on(front).await;
    unread(front).await;
    leaving(front).await;
    traversal(front).await;
    others(front).await;
}

/// The path of a mark that a script may leave or wait for.
fn mark(front: &Front, name: &str) -> String {
    front.scratch.path(&format!("marks/{name}")).display().to_string()
}

/// An event reaches the client before the next is written: the script waits until the client says that it has it.
pub async fn events(front: &Front) {
    if front.is("*/lighttpd/collected") || front.is("*/nginx/*/*/buffered") {
        // They collect answers, and the script would wait for ever.
        return;
    }
    let mark = mark(front, "event");
    let mut client = Client::connect(front.address).await.expect("the server accepts connections");
    let target = format!("/cgi-bin/misbehaving/events.sh?{mark}");
    let mut head = client.head("GET", &target, &[], Upload::Nothing).await.expect("the head comes");
    let mut text = String::new();
    for number in 0..5 {
        while !text.ends_with(&format!("data: {number}\n\n")) {
            let piece = head.next().await.unwrap_or_else(|error| panic!("{}: event {number}: {error}", front.name));
            text.push_str(&String::from_utf8_lossy(&piece.expect("the stream has not ended")));
        }
        fs::write(format!("{mark}{number}"), "").expect("a mark can be made");
    }
    assert!(matches!(head.next().await, Ok(None)), "{}: the stream ends", front.name);
}

/// A process that a script leaves behind holds its output open: the answer ends all the same, and the process goes on.
pub async fn grandchild(front: &Front) {
    let mark = mark(front, "grandchild");
    let answer = get(front.address, &format!("/cgi-bin/misbehaving/grandchild.sh?{mark}")).await;
    let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", front.name));
    assert_eq!((answer.text().as_str(), &answer.cut), ("answered\n", &None), "{}", front.name);
    fs::write(mark, "").expect("a mark can be made");
}

/// A script that has closed its output is left in peace until it is done.
pub async fn works_on(front: &Front) {
    let mark = mark(front, "works-on");
    let answer = get(front.address, &format!("/cgi-bin/misbehaving/works-on.sh?{mark}")).await;
    let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", front.name));
    assert_eq!((answer.text().as_str(), &answer.cut), ("answered\n", &None), "{}", front.name);
    eventually(front, "the script works on", || Path::new(&mark).exists()).await;
}

/// Uploads that nobody reads are answered, each of many.
pub async fn unread(front: &Front) {
    for round in 0..20 {
        let script = ["unread", "closed-input", "partly-read"][round % 3];
        let mut client = Client::connect(front.address).await.expect("the server accepts connections");
        let target = format!("/cgi-bin/misbehaving/{script}.sh");
        let answer = client.send("POST", &target, &[], Upload::Sized(5_000_000)).await;
        let answer = answer.unwrap_or_else(|error| panic!("{}: round {round}: {error}", front.name));
        assert_eq!((answer.status, &answer.cut), (200, &None), "{}: round {round}, {script}", front.name);
    }
}

/// Clients leave in the middle: the scripts and what they have started are gone, even one that takes no notice of TERM.
pub async fn leaving(front: &Front) {
    if front.is("*/lighttpd/collected") {
        // lighttpd notices that its client has left when it has all.
        return;
    }
    for script in ["forks", "traps-term"] {
        if script == "traps-term" && !(front.is("*/nginx") || front.is("gatespan/http")) {
            // It writes nothing more, and only these notice without writing.
            continue;
        }
        let mark = mark(front, script);
        let mut client = Client::connect(front.address).await.expect("the server accepts connections");
        let target = format!("/cgi-bin/misbehaving/{script}.sh?{mark}");
        let sending = tokio::spawn(async move {
            let head = client.head("GET", &target, &[], Upload::Nothing).await;
            // Held until this task is aborted.
            let _kept = (head, client);
            std::future::pending::<()>().await;
        });
        eventually(front, script, || fs::read_to_string(&mark).is_ok_and(|text| text.ends_with('\n'))).await;
        let processes: Vec<u32> = fs::read_to_string(&mark)
            .expect("it was just there")
            .lines()
            .map(|line| line.parse().expect("a process's number"))
            .collect();
        assert_eq!(processes.len(), if script == "forks" { 4 } else { 1 }, "{}", front.name);
        for process in &processes {
            assert!(is_alive(*process), "{}: {script}: ended before its client left", front.name);
        }
        sending.abort();
        let _ = sending.await;
        eventually(front, script, || !processes.iter().any(|process| is_alive(*process))).await;
    }
}

/// For a host with short limits: a script without a head is 504, one that stops in the middle of its answer is cut, and neither is left.
pub async fn too_late(front: &Front) {
    let marks = ["traps-term-before", "traps-term"].map(|script| (script, mark(front, script)));
    let [before, between] = marks.each_ref().map(|(script, mark)| format!("/cgi-bin/misbehaving/{script}.sh?{mark}"));
    let (before, between) = tokio::join!(get(front.address, &before), get(front.address, &between));
    let before = before.unwrap_or_else(|error| panic!("{}: no head: {error}", front.name));
    assert_eq!(before.status, 504, "{}: {}", front.name, before.text());
    let between = between.unwrap_or_else(|error| panic!("{}: no end: {error}", front.name));
    if front.is("*/lighttpd/collected") {
        assert_eq!(between.status, 502, "{}: an answer that was cut before any of it was sent", front.name);
    } else {
        assert_eq!((between.status, between.text().as_str()), (200, "begun\n"), "{}", front.name);
        assert!(between.cut.is_some(), "{}: the client can see that it is not whole", front.name);
    }
    for (script, mark) in marks {
        let process = fs::read_to_string(mark).expect("it ran").trim().parse().expect("a process's number");
        eventually(front, script, || !is_alive(process)).await;
    }
}

/// Whether there is such a process that has not ended.
pub fn is_alive(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// Waits for something that has to happen soon.
pub async fn eventually(front: &Front, what: &str, happened: impl Fn() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(15), "{}: {what}: it has not happened", front.name);
        sleep(Duration::from_millis(10)).await;
    }
}

/// Ways out of the folder, in every spelling. Two scripts outside would run if they were reached.
const OUT: &[&str] = &[
    "/cgi-bin/../outside.sh",
    "/cgi-bin/../../outside.sh",
    "/cgi-bin/./../outside.sh",
    "/cgi-bin/misbehaving/../../outside.sh",
    "/cgi-bin/probe.sh/../../outside.sh",
    "/cgi-bin/%2e%2e/outside.sh",
    "/cgi-bin/%2E%2E/outside.sh",
    "/cgi-bin/.%2e/outside.sh",
    "/cgi-bin/%2e./outside.sh",
    "/cgi-bin/%2e%2e%2foutside.sh",
    "/cgi-bin/..%2foutside.sh",
    "/cgi-bin/..%2Foutside.sh",
    "/cgi-bin/%252e%252e/outside.sh",
    "/cgi-bin/%252e%252e%252foutside.sh",
    "/cgi-bin/..%5coutside.sh",
    "/cgi-bin/..\\outside.sh",
    "/cgi-bin/%5c..%5c..%5coutside.sh",
    "/cgi-bin/%c0%ae%c0%ae/outside.sh",
    "/cgi-bin/%c0%ae%c0%ae%c0%afoutside.sh",
    "/cgi-bin/%e0%80%ae%e0%80%ae/outside.sh",
    "/cgi-bin/%ef%bc%8e%ef%bc%8e/outside.sh",
    "/cgi-bin/..;/outside.sh",
    "/cgi-bin/..%00/outside.sh",
    "/cgi-bin/%00/../outside.sh",
    "/cgi-bin/with%20space.sh%00.txt",
    "/cgi-bin//../outside.sh",
    "/cgi-bin/..//outside.sh",
    "/cgi-bin/..%0a/outside.sh",
    "/cgi-bin/%0d%0aX-Header:%20evil/outside.sh",
    "/cgi-bin/..%u2215outside.sh",
    "/cgi-bin/%%2e/outside.sh",
    "/cgi-bin/link-outside.sh",
    "/cgi-bin/link-outside.sh/",
];

/// Whatever is asked for, nothing outside the folder is run, each has an answer, and the next request is unharmed.
pub async fn traversal(front: &Front) {
    let mut failures = Vec::new();
    for target in OUT {
        let answer = raw(front, target).await;
        let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
        // lighttpd shows files next to the folder; a script in it may have any PATH_INFO, but nothing is made of that.
        let is_shown = front.is("*/lighttpd") && answer.contains("ran $((6 * 7))");
        let is_inside = answer.contains("\nSCRIPT_NAME=/cgi-bin/probe.sh\n") && !answer.contains("\nPATH_TRANSLATED=");
        let is_right = is_shown || is_inside || ["301", "302", "400", "403", "404"].contains(&&*status);
        if answer.contains("ran 42 outside") || !is_right {
            failures.push(format!("{target}: {}", answer.chars().take(300).collect::<String>()));
        }
    }
    assert!(failures.is_empty(), "{}: {} ways out:\n{}", front.name, failures.len(), failures.join("\n"));
    let answer = get(front.address, "/cgi-bin/hello.cgi").await.expect("an answer comes");
    assert_eq!(answer.text(), "Hello, world\n", "{}", front.name);
}

/// An answer to a target that no client would send.
async fn raw(front: &Front, target: &str) -> String {
    let mut stream = TcpStream::connect(front.address).await.expect("the server accepts connections");
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("the server reads");
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    let _ = read.unwrap_or_else(|_| panic!("{}: {target}: no answer", front.name));
    String::from_utf8_lossy(&answer).into_owned()
}

/// While scripts misbehave in every way, others are answered as if nothing were.
pub async fn others(front: &Front) {
    const BAD: &[&str] = &[
        "killed-before",
        "killed-after",
        "head-without-end",
        "head-of-garbage",
        "silent",
        "short",
        "long",
        "floods-errors",
        "errors-without-end",
        "no-interpreter",
        "head-split",
        "closed-input",
    ];
    let mut tasks = JoinSet::new();
    for number in 0..48 {
        let address = front.address;
        tasks.spawn(async move {
            if number % 2 == 0 {
                let target = format!("/cgi-bin/misbehaving/{}.sh", BAD[number / 2 % BAD.len()]);
                // Whatever comes.
                let _ = get(address, &target).await;
                return Ok(());
            }
            let length = 10_000 + number as u64;
            let mut client = Client::connect(address).await?;
            let answer = client.send("POST", "/cgi-bin/probe.cgi/echo", &[], Upload::Sized(length)).await?;
            let mut hash = Sha256::new();
            pattern::blocks(length).for_each(|block| hash.update(&block));
            match answer.sha256 == pattern::hexadecimal(&hash.finalize()) && answer.cut.is_none() {
                true => Ok(()),
                false => Err(format!("{} {} bytes, {:?}", answer.status, answer.length, answer.cut)),
            }
        });
    }
    let failures: Vec<String> = tasks.join_all().await.into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{}: {failures:?}", front.name);
}
