//! `gatespan demo`, from outside: over HTTP, and in a real browser.
#![cfg(feature = "cli")]

mod browser;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use sha2::{Digest, Sha256};

use browser::{Browser, Screen};

const GATEWAYS: [&str; 3] = ["http", "fastcgi", "cgi"];

/// A demo that runs, with a folder of its own for what it leaves behind.
struct Demo {
    process: Child,
    /// With a slash at its end.
    address: String,
    folder: tempfile::TempDir,
}

impl Demo {
    fn start() -> Self {
        Self::start_with(|_| ())
    }

    fn start_with(change: impl FnOnce(&mut Command)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatespan"));
        command
            .args(["demo", "--no-open", "--listen", "http://127.0.0.1:0"])
            .env("TMPDIR", folder.path())
            // What a script must not be told of.
            .env("GATESPAN_TEST_SECRET", "secret")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        change(&mut command);
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split_whitespace().last().unwrap_or_default().to_owned();
        assert!(address.starts_with("http://127.0.0.1:") && address.ends_with('/'), "{line}");
        Self { process, address, folder }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{}", self.address, path.trim_start_matches('/'))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let sent = tokio::time::timeout(Duration::from_secs(20), client.request(request));
        sent.await.expect("an answer in time").unwrap()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        text(self.send(Request::get(self.url(path)).body(Full::default()).unwrap()).await).await
    }

    async fn post(&self, path: &str, content_type: &str, body: impl Into<Bytes>) -> (u16, String) {
        let request = Request::post(self.url(path)).header("Content-Type", content_type);
        text(self.send(request.body(Full::new(body.into())).unwrap()).await).await
    }

    /// The environ as the application lists it.
    async fn environ(&self, gateway: &str) -> serde_json::Value {
        let (status, text) = self.get(&format!("{gateway}/environ?a=%3Cb%3E")).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    fn left_behind(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < Duration::from_secs(5), "the demo does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn text(response: Response<Incoming>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn occurrences(text: &str, pattern: &str) -> usize {
    text.matches(pattern).count()
}

#[tokio::test]
async fn the_page_compares_three_answers_and_their_environs() {
    let demo = Demo::start();
    let response = demo.send(Request::get(demo.url("/?x=%3Ci%3E")).body(Full::default()).unwrap()).await;
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    let (status, page) = text(response).await;
    assert_eq!(status, 200);
    assert_eq!(occurrences(&page, "<span class=\"status\">200 Fine, thank you</span>"), 3, "{page}");
    for gateway in GATEWAYS {
        assert!(page.contains(&format!("You asked for /{gateway}/.")), "{gateway}");
        assert!(page.contains(&format!("data-stream=\"/{gateway}/events\"")), "{gateway}");
    }
    for expected in ["= equal</span>", "≠ different</span>", "∅ missing</span>", "<span class=\"none\">missing</span>"]
    {
        assert!(page.contains(expected), "{expected}");
    }
    assert!(!page.contains("No answer"), "{page}");
    assert!(!page.contains("secret"), "the script inherited the demo's environment");
}

#[tokio::test]
async fn each_path_is_its_gateway_and_the_application_is_the_same() {
    let demo = Demo::start();
    let mut variables = Vec::new();
    for gateway in GATEWAYS {
        let (status, hello) = demo.get(&format!("{gateway}/")).await;
        assert_eq!((status, hello.lines().next()), (200, Some("Hello from one small application.")), "{gateway}");
        let mut environ = demo.environ(gateway).await;
        assert_eq!(environ["interface"]["gateway"], gateway);
        assert_eq!(environ["interface"]["wsgi.run_once"], (gateway == "cgi").to_string());
        let mut told = environ["variables"].take();
        for (name, expected) in [("SCRIPT_NAME", format!("/{gateway}")), ("PATH_INFO", "/environ".into())] {
            assert_eq!(told[name], expected, "{gateway}");
        }
        assert_eq!(told["QUERY_STRING"], "a=%3Cb%3E");
        let told = told.as_object_mut().unwrap();
        for name in ["SCRIPT_NAME", "REQUEST_URI", "REMOTE_PORT", "SCRIPT_FILENAME", "GATESPAN_DEMO_SCRIPT"] {
            told.remove(name);
        }
        variables.push(told.clone());
    }
    assert_eq!(variables[0], variables[1]);
    assert_eq!(variables[0], variables[2]);
}

#[tokio::test]
async fn paths_that_are_not_there_and_methods_that_do_not_fit_are_told_so() {
    let demo = Demo::start();
    for (path, status) in [("/nothing", 404), ("/httpx", 404), ("/http/x", 404), ("/fastcgi/x", 404), ("/cgi/x", 404)] {
        assert_eq!(demo.get(path).await.0, status, "{path}");
    }
    for gateway in GATEWAYS {
        assert_eq!(demo.get(&format!("{gateway}/form")).await.0, 405, "{gateway}");
    }
    assert_eq!(demo.get("/form").await.0, 303);
    let head = demo.send(Request::head(demo.url("/")).body(Full::default()).unwrap()).await;
    assert_eq!((head.status().as_u16(), text(head).await.1), (200, String::new()));
}

#[tokio::test]
async fn a_form_arrives_through_each_gateway() {
    let demo = Demo::start();
    let form = "name=Zo%C3%AB+%26+co&message=%3Cscript%3E";
    let (status, page) = demo.post("/form", "application/x-www-form-urlencoded", form).await;
    assert_eq!(status, 200);
    assert_eq!(occurrences(&page, "name: Zoë &amp; co\nmessage: &lt;script&gt;"), 3, "{page}");
    assert!(page.contains("= equal</span> The same form arrived through all three gateways."), "{page}");
    for gateway in GATEWAYS {
        let (_, answer) = demo.post(&format!("{gateway}/form"), "application/x-www-form-urlencoded", form).await;
        assert!(answer.contains("name: Zoë & co\n"), "{gateway}: {answer}");
        let long = vec![b'a'; 100_000];
        assert_eq!(demo.post(&format!("{gateway}/form"), "text/plain", long).await.0, 413, "{gateway}");
    }
}

#[tokio::test]
async fn an_upload_arrives_whole_through_each_gateway() {
    let demo = Demo::start();
    let content: Vec<u8> = (0..10_000_000u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let checksum: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = format!("bytes    10000000\nSHA-256  {checksum}\n");
    for gateway in GATEWAYS {
        let (status, answer) =
            demo.post(&format!("{gateway}/upload"), "application/octet-stream", content.clone()).await;
        assert!(status == 200 && answer.starts_with(&expected), "{gateway}: {status} {answer}");
    }
    let head = "--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a<b>.bin\"\r\n\r\n";
    let body = [head.as_bytes(), &content, b"\r\n--xyz--\r\n"].concat();
    let (status, page) = demo.post("/upload", "multipart/form-data; boundary=xyz", body).await;
    assert_eq!(status, 200);
    assert_eq!(occurrences(&page, &format!("name     a&lt;b&gt;.bin\n{expected}")), 3, "{page}");
    assert!(page.contains("= equal</span> The same file arrived"), "{page}");
}

#[tokio::test]
async fn a_body_without_a_length_is_refused_where_cgi_would_lose_it() {
    let demo = Demo::start();
    for (gateway, expected) in [("http", 200), ("fastcgi", 200), ("cgi", 411)] {
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(
            ["a", "bc"].map(|piece| Ok::<_, std::io::Error>(hyper::body::Frame::data(Bytes::from(piece)))),
        ));
        let client = Client::builder(TokioExecutor::new()).build_http();
        let request = Request::put(demo.url(&format!("{gateway}/upload"))).body(body).unwrap();
        let (status, answer) = text(client.request(request).await.unwrap()).await;
        assert_eq!(status, expected, "{gateway}: {answer}");
    }
}

#[tokio::test]
async fn events_arrive_one_by_one_through_each_gateway() {
    let demo = Demo::start();
    let streams = GATEWAYS.map(|gateway| {
        let demo = &demo;
        async move {
            let request = Request::get(demo.url(&format!("{gateway}/events"))).body(Full::default()).unwrap();
            let response = demo.send(request).await;
            assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
            let mut body = response.into_body();
            let mut arrived = Vec::new();
            for tick in 1..=3 {
                // HTTP may cut it where it likes.
                let mut event = String::new();
                while !event.ends_with("\n\n") {
                    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
                    event.push_str(std::str::from_utf8(&frame).unwrap());
                }
                assert!(event.starts_with(&format!("id: {tick}\ndata: {{")), "{gateway}: {event}");
                assert_eq!(occurrences(&event, "data:"), 1, "{gateway}: {event}");
                arrived.push(Instant::now());
            }
            // Half a second apart each; a machine that is busy may hold up one of them.
            let spread = arrived[2] - arrived[0];
            assert!(spread > Duration::from_millis(300), "{gateway}: three events within {spread:?}");
        }
    });
    futures_util::future::join_all(streams).await;
}

/// The processes that this one started and that have not ended.
fn children(process: u32) -> Vec<i32> {
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_child = |id: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
        field("PPid:") == process.to_string() && !field("State:").starts_with('Z')
    };
    processes.filter(is_child).collect()
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_script() {
    let demo = Demo::start();
    let request = Request::get(demo.url("cgi/events")).body(Full::default()).unwrap();
    let mut response = demo.send(request).await;
    response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(children(demo.process.id()).len(), 1);
    drop(response);
    let left = Instant::now();
    while !children(demo.process.id()).is_empty() {
        assert!(left.elapsed() < Duration::from_secs(2), "the script still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_it_and_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut demo = Demo::start();
        let folders = demo.left_behind();
        assert_eq!(folders.len(), 1, "{folders:?}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&folders[0].metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o700, "only this user may reach the socket");
        assert!(folders[0].join("application.sock").exists());
        let mut streams = Vec::new();
        for gateway in GATEWAYS {
            let request = Request::get(demo.url(&format!("{gateway}/events"))).body(Full::default()).unwrap();
            let mut response = demo.send(request).await;
            response.body_mut().frame().await.unwrap().unwrap();
            streams.push(response.into_body());
        }
        let scripts = children(demo.process.id());
        assert_eq!(scripts.len(), 1);
        let asked = Instant::now();
        demo.signal(signal);
        for stream in streams {
            // The streams end as they should and are not cut.
            stream.collect().await.unwrap();
        }
        let status = tokio::task::block_in_place(|| demo.wait());
        assert_eq!(status.code(), Some(0), "{status}");
        assert!(asked.elapsed() < Duration::from_secs(2), "it took {:?}", asked.elapsed());
        assert_eq!(demo.left_behind(), Vec::<PathBuf>::new());
        assert!(scripts.iter().all(|id| test_kill_process(Pid::from_raw(*id).unwrap()).is_err()), "{scripts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_starts_a_browser_and_the_log_is_json_where_asked() {
    let desktop = tempfile::tempdir().unwrap();
    let opened = desktop.path().join("opened");
    let script = desktop.path().join("xdg-open");
    std::fs::write(
        &script,
        format!("#!/bin/sh\nprintf %s \"$1\" > '{0}.new' && mv '{0}.new' '{0}'\n", opened.display()),
    )
    .unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", desktop.path().display(), std::env::var("PATH").unwrap());
    let mut demo = Demo::start_with(|command| {
        command.args(["--open", "--log-format", "json"]).env("PATH", path).env("DISPLAY", ":99").stderr(Stdio::piped());
    });
    let started = Instant::now();
    while !opened.exists() {
        assert!(started.elapsed() < Duration::from_secs(10), "nothing was opened");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(std::fs::read_to_string(&opened).unwrap(), demo.address);
    for gateway in GATEWAYS {
        let (status, _) = demo.post(&format!("{gateway}/form"), "text/plain", vec![b'a'; 100_000]).await;
        assert_eq!(status, 413, "{gateway}");
    }
    demo.signal(Signal::INT);
    assert_eq!(tokio::task::block_in_place(|| demo.wait()).code(), Some(0));
    let log = std::io::read_to_string(demo.process.stderr.take().unwrap()).unwrap();
    // The script's line too is part of the log.
    assert_eq!(occurrences(&log, "longer than the limit of 65536 bytes"), 3, "{log}");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(line["level"], "WARN");
    }
}

const PHONE: Screen = Screen { width: 390, height: 844, phone: true, dark: false };
const DESKTOP: Screen = Screen { width: 1280, height: 900, phone: false, dark: false };

#[test]
fn a_browser_shows_it_on_a_desktop_and_a_phone_light_and_dark() {
    let demo = Demo::start();
    let mut browser = Browser::start();
    let mut shots = Vec::new();
    for screen in [DESKTOP, PHONE, Screen { dark: true, ..DESKTOP }, Screen { dark: true, ..PHONE }] {
        browser.set_screen(screen);
        browser.open(&demo.address);
        let ticks = "[...document.querySelectorAll('.tick')].map((tick) => Number(tick.textContent))";
        browser.wait_for(&format!("{ticks}.length == 3 && {ticks}.every((tick) => tick >= 2)"));
        let states =
            browser.evaluate("[...document.querySelectorAll('.state')].map((state) => state.textContent).join()");
        assert_eq!(states, "open,open,open");
        assert_eq!(browser.evaluate("innerWidth"), screen.width, "the viewport is the screen");
        let widest =
            "Math.max(...[...document.querySelectorAll('*')].map((each) => each.getBoundingClientRect().right))";
        assert!(
            browser.evaluate(widest).as_f64().unwrap() <= f64::from(screen.width),
            "something is cut off at the side"
        );
        let overflow = browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth");
        assert_eq!(overflow, 0, "{screen:?} scrolls sideways");
        shots.push((screen, browser.screenshot()));
    }
    browser.open("about:blank");
    for (screen, shot) in shots {
        let (width, height, colours) = browser.measure(&shot);
        assert_eq!(width, u64::from(screen.width));
        assert!(height > u64::from(screen.height), "{screen:?}: the page is only {height} pixels high");
        assert!(colours > 100, "{screen:?}: only {colours} colours");
        // To be looked at by people: target/tmp/demo-phone-dark.png, ….
        let (kind, scheme) =
            (if screen.phone { "phone" } else { "desktop" }, if screen.dark { "dark" } else { "light" });
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("demo-{kind}-{scheme}.png"));
        std::fs::write(path, browser::from_base64(&shot)).unwrap();
    }
    assert_eq!(browser.complaints, Vec::<String>::new());
}

#[test]
fn a_browser_without_scripts_sees_all_but_the_ticking_and_sends_form_and_file() {
    let demo = Demo::start();
    let mut file = tempfile::NamedTempFile::with_suffix(".txt").unwrap();
    std::io::Write::write_all(&mut file, b"abc").unwrap();
    let mut browser = Browser::start();
    browser.set_screen(PHONE);
    browser.set_scripting(false);
    browser.open(&demo.address);
    assert_eq!(browser.evaluate("document.querySelectorAll('#answers .status').length"), 3);
    assert_eq!(browser.evaluate("document.querySelector('#streams button').hidden"), true);
    assert_eq!(browser.evaluate("document.querySelector('noscript') != null"), true);
    browser.evaluate("document.querySelector('form[action=\"/form\"] button').click()");
    browser.wait_for("location.pathname == '/form' && document.readyState == 'complete'");
    let shown = browser.evaluate("document.body.innerText");
    let shown = shown.as_str().unwrap();
    assert!(shown.contains("The same form arrived through all three gateways."), "{shown}");
    assert_eq!(
        occurrences(shown, "name: Zoë & Łukasz\nmessage: 100 % of <what> you type = what arrives?"),
        3,
        "{shown}"
    );
    browser.open(&demo.address);
    browser.choose_file("input[type=file]", file.path());
    browser.evaluate("document.querySelector('form[action=\"/upload\"] button').click()");
    browser.wait_for("location.pathname == '/upload' && document.readyState == 'complete'");
    let shown = browser.evaluate("document.body.innerText");
    let shown = shown.as_str().unwrap();
    let checksum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(occurrences(shown, &format!("bytes    3\nSHA-256  {checksum}")), 3, "{shown}");
    let overflow = browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth");
    assert_eq!(overflow, 0, "the answer scrolls sideways");
    assert_eq!(browser.complaints, Vec::<String>::new());
}
