//! A real browser for tests: Debian's chromium without a window, driven through its DevTools protocol over a pipe.
//!
//! The pipe and not a port, so that nobody else can drive it; the protocol and not `--screenshot`, so that one start serves all sizes, and so that
//! a phone is a phone: a window of chromium is at least 500 pixels wide.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A browser with one page.
pub(crate) struct Browser {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    session: Option<String>,
    last_id: u64,
    /// What the page complained about: exceptions, and what the console would show in red.
    pub(crate) complaints: Vec<String>,
    _profile: TempDir,
}

/// What a page is looked at with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) phone: bool,
    pub(crate) dark: bool,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        // The protocol is on descriptors 3 and 4, which the shell makes of the pipes; chromium's own output is of no interest.
        let mut process = Command::new("sh")
            .args(["-c", "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "sh"])
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-dev-shm-usage", "--hide-scrollbars"])
            .arg("--remote-debugging-pipe")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (commands, answers) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let mut browser =
            Self { process, commands, answers, session: None, last_id: 0, complaints: Vec::new(), _profile: profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let session = browser.call("Target.attachToTarget", json!({ "targetId": target["targetId"], "flatten": true }));
        browser.session = session["sessionId"].as_str().map(Into::into);
        browser.call("Log.enable", json!({}));
        browser.call("Runtime.enable", json!({}));
        browser.call("Page.enable", json!({}));
        browser
    }

    pub(crate) fn set_screen(&mut self, screen: Screen) {
        let Screen { width, height, phone, dark } = screen;
        self.call(
            "Emulation.setDeviceMetricsOverride",
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone }),
        );
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    pub(crate) fn set_scripting(&mut self, enabled: bool) {
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": !enabled }));
    }

    pub(crate) fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({ "url": url }));
        assert!(opened.get("errorText").is_none(), "{url}: {opened}");
        self.wait_for(&format!("location.href.startsWith({}) && document.readyState == 'complete'", json!(url)));
    }

    /// The value of an expression, awaited where it is a promise.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let evaluated = self
            .call("Runtime.evaluate", json!({ "expression": expression, "returnByValue": true, "awaitPromise": true }));
        assert!(evaluated.get("exceptionDetails").is_none(), "{expression}: {evaluated}");
        evaluated["result"]["value"].clone()
    }

    pub(crate) fn wait_for(&mut self, condition: &str) {
        let started = Instant::now();
        while self.evaluate(condition) != true {
            assert!(started.elapsed() < Duration::from_secs(15), "waited too long for {condition}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Chooses a file in a file input, as a person does in the dialog.
    pub(crate) fn choose_file(&mut self, selector: &str, path: &std::path::Path) {
        let input = self
            .call("Runtime.evaluate", json!({ "expression": format!("document.querySelector({})", json!(selector)) }));
        self.call("DOM.setFileInputFiles", json!({ "files": [path], "objectId": input["result"]["objectId"] }));
    }

    /// The whole page as a PNG, in base64.
    pub(crate) fn screenshot(&mut self) -> String {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true }));
        shot["data"].as_str().unwrap().into()
    }

    /// Width, height and the number of distinct colours of a PNG, as the browser decodes it. Needs a page that allows pictures: about:blank.
    pub(crate) fn measure(&mut self, png: &str) -> (u64, u64, u64) {
        let script = format!(
            "(async () => {{
                const image = new Image();
                image.src = 'data:image/png;base64,{png}';
                await image.decode();
                const canvas = new OffscreenCanvas(image.width, image.height);
                const context = canvas.getContext('2d');
                context.drawImage(image, 0, 0);
                const data = context.getImageData(0, 0, image.width, image.height).data;
                return [image.width, image.height, new Set(new Uint32Array(data.buffer)).size];
            }})()"
        );
        let measured = self.evaluate(&script);
        let number = |index: usize| measured[index].as_u64().unwrap();
        (number(0), number(1), number(2))
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut command = json!({ "id": self.last_id, "method": method, "params": params });
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        let sent = self.commands.write_all(format!("{command}\0").as_bytes());
        assert!(sent.is_ok(), "chromium could not be started; install it: apt-get install chromium");
        loop {
            let mut message = Vec::new();
            self.answers.read_until(0, &mut message).unwrap();
            assert!(
                message.pop().is_some(),
                "chromium could not be started or ended; install it: apt-get install chromium"
            );
            let mut message: Value = serde_json::from_slice(&message).unwrap();
            match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => self.complaints.push(message["params"].to_string()),
                Some("Log.entryAdded") if message["params"]["entry"]["level"] == "error" => {
                    self.complaints.push(message["params"]["entry"].to_string());
                }
                _ => {}
            }
            if message["id"] == self.last_id {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].take();
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Asked to end, it takes its other processes along, which write to the profile until then. A test that failed may have found it gone.
        let _ = self.commands.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(3) && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// RFC 4648 section 4, for what the browser makes: without line ends.
pub(crate) fn from_base64(text: &str) -> Vec<u8> {
    let six = |letter: u8| match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        other => panic!("{other} is no letter of base64"),
    };
    let letters = text.trim_end_matches('=').as_bytes();
    let groups = letters.chunks(4).flat_map(|group| {
        let bits =
            group.iter().fold(0u32, |bits, letter| bits << 6 | u32::from(six(*letter))) << (6 * (4 - group.len()));
        bits.to_be_bytes().into_iter().skip(1).take(group.len() - 1).collect::<Vec<_>>()
    });
    groups.collect()
}
