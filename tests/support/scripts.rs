//! CGI programs behind real servers: the folder of scripts, what runs them, the web servers in front, and the table of
//! requests that all of them have to pass. Where a host or a front differs, its expectation stands beside the usual one
//! with the reason.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use rustix::process::getuid;

use super::Front;
use super::client::Upload;
use super::process::{Scratch, Server, free_address, note, program};
use super::table::{
    self, Any, Broken, Cut, Exactly, Expect, Hangs, Lines, Pattern, Row, UNSURE, Whatever, get_row, lines, row, status,
};

/// The endings of the probe, which is one program in six languages.
const LANGUAGES: &[&str] = &["cgi", "sh", "pl", "py", "awk", "php"];

/// What runs the scripts.
#[derive(Clone, Copy, PartialEq)]
pub enum Host {
    Fcgiwrap,
    /// With further options.
    Gatespan(&'static [&'static str]),
}

/// Where it listens.
#[derive(Clone, Copy, PartialEq)]
pub enum Socket {
    Unix,
    Tcp,
}

/// A host of scripts that runs, and where it is to be found.
pub struct Hosted {
    pub server: Server,
    /// `unix:/path/to.sock` or an address and a port, as nginx writes it.
    pub nginx: String,
    pub path: PathBuf,
    pub tcp: SocketAddr,
}

impl Host {
    /// Starts it with the scripts of a folder.
    pub fn start(self, scratch: &Scratch, socket: Socket) -> Hosted {
        let (path, tcp) = (scratch.path("scripts.sock"), free_address());
        let nginx = match socket {
            Socket::Unix => format!("unix:{}", path.display()),
            Socket::Tcp => tcp.to_string(),
        };
        let mut command = match self {
            Host::Fcgiwrap => {
                let mut command = program("/usr/sbin/fcgiwrap", "fcgiwrap");
                let url = if socket == Socket::Unix { nginx.clone() } else { format!("tcp:{nginx}") };
                command.args(["-f", "-c", "64", "-s", &url]);
                command
            }
            Host::Gatespan(options) => {
                let from = match socket {
                    Socket::Unix => format!("fastcgi:{}", path.display()),
                    Socket::Tcp => format!("fastcgi://{tcp}"),
                };
                bridge(&from, &format!("cgi:{}/", scratch.path("www/cgi-bin").display()), options)
            }
        };
        command.current_dir("/");
        let server = Server::start(scratch, "host", inheriting(&command), &[]);
        let server = match socket {
            Socket::Unix => server.ready_at(&path),
            Socket::Tcp => server.ready_on(tcp),
        };
        if socket == Socket::Unix {
            // Apache's workers are not root.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("a socket's mode can be set");
        }
        Hosted { server, nginx, path, tcp }
    }
}

/// A descriptor that hosts inherit, and that no script must see.
const INHERITED: &str = "9";

/// The same command, that is given a descriptor more than the usual three.
fn inheriting(command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("exec \"$@\" {INHERITED}</dev/null"), "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    assert_eq!(command.get_envs().len(), 0, "variables would be lost here");
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    shell
}

/// The tool as a bridge from one address to another.
pub fn bridge(from: &str, to: &str, options: &[&str]) -> Command {
    // Other tests share this file and are built without the tool.
    const TOOL: Option<&str> = option_env!("CARGO_BIN_EXE_gatespan");
    let tool = TOOL.expect("these tests are built with the feature cli");
    let mut command = Command::new(tool);
    command.args(["bridge", from, to]).args(options);
    command
}

/// Our own HTTP server in front of the scripts.
pub fn http(name: &'static str, options: &[&str]) -> Front {
    let scratch = scratch();
    let address = free_address();
    let route = format!("/cgi-bin=cgi:{}/", scratch.path("www/cgi-bin").display());
    let internal = format!("/internal/={}", scratch.path("internal").display());
    let options = [&["--route", &*route, "--accel-root", &*internal], options].concat();
    let mut command = bridge(&format!("http://{address}"), "app:hello", &options);
    command.current_dir("/");
    let server = Server::start(&scratch, "host", inheriting(&command), &[]).ready_on(address);
    Front { name, address, servers: vec![server], scratch }
}

/// A folder `www` with the scripts in `cgi-bin`, and around them what must not be run.
pub fn scratch() -> Scratch {
    let scratch = Scratch::new();
    for folder in ["www", "www/cgi-bin", "www/cgi-bin/misbehaving", "www/cgi-bin/folder.sh", "internal"] {
        fs::create_dir(scratch.path(folder)).expect("a folder can be made");
        mode(&scratch.path(folder), 0o755);
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cgi-bin");
    for folder in ["", "misbehaving/"] {
        for entry in fs::read_dir(fixtures.join(folder)).expect("the fixtures are there") {
            let entry = entry.expect("a folder can be read");
            let name = entry.file_name().into_string().expect("the fixtures' names are text");
            let is_script = !name.ends_with(".c") && !name.ends_with(".md");
            if is_script && entry.file_type().is_ok_and(|kind| kind.is_file()) {
                let copy = scratch.path(&format!("www/cgi-bin/{folder}{name}"));
                fs::copy(entry.path(), &copy).expect("a script can be copied");
                // Not as it was checked out: who checks out can have a umask of his own.
                mode(&copy, if name == "not-executable.sh" { 0o644 } else { 0o755 });
            }
        }
    }
    for (name, program) in ["probe", "hello"].iter().zip(compiled()) {
        let copy = scratch.path(&format!("www/cgi-bin/{name}.cgi"));
        fs::write(&copy, program).expect("a program can be written");
        mode(&copy, 0o755);
    }
    let runs = |name: &str, text: &str| {
        scratch.write(name, &format!("#!/bin/dash\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s\\n' \"{text}\"\n"));
        mode(&scratch.path(name), 0o755);
    };
    runs("www/cgi-bin/with space.sh", "a space");
    runs("www/cgi-bin/writable.sh", "ran what all can write to");
    mode(&scratch.path("www/cgi-bin/writable.sh"), 0o777);
    // What it prints is not in its text, which web servers may show.
    runs("www/outside.sh", "ran $((6 * 7)) outside");
    runs("outside.sh", "ran $((6 * 7)) outside");
    let linked = |target: &str, name: &str| {
        symlink(target, scratch.path(name)).expect("a link can be made");
    };
    linked("with space.sh", "www/cgi-bin/link-inside.sh");
    linked("../outside.sh", "www/cgi-bin/link-outside.sh");
    if getuid().is_root() {
        // Links of root's lead out of a folder.
        lchown(scratch.path("www/cgi-bin/link-outside.sh"), Some(65_534), None).expect("a link can be given away");
    }
    linked("/dev/zero", "www/cgi-bin/device.sh");
    linked("nowhere", "www/cgi-bin/link-nowhere.sh");
    let socket = UnixListener::bind(scratch.path("www/cgi-bin/socket.sh")).expect("a socket can be made");
    drop(socket);
    mode(&scratch.path("www/cgi-bin/socket.sh"), 0o755);
    let made = Command::new("mkfifo").args(["-m", "755"]).arg(scratch.path("www/cgi-bin/fifo.sh")).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo failed");
    scratch.write("internal/file.txt", "an internal file\n");
    scratch
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a file's mode can be set");
}

/// The programs in C: the probe, and one that only answers.
pub fn compiled() -> &'static [Vec<u8>; 2] {
    static PROGRAMS: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cgi-bin");
        ["probe", "hello"].map(|name| {
            let program = folder.path().join(name);
            let mut gcc = self::program("/usr/bin/gcc", "gcc libc6-dev");
            gcc.args(["-O2", "-static", "-o"]).arg(&program).arg(fixtures.join(name).with_extension("c"));
            assert!(gcc.status().is_ok_and(|status| status.success()), "gcc could not compile {name}.c");
            fs::read(&program).expect("the program is there")
        })
    })
}

/// How bodies pass through nginx.
#[derive(Clone, Copy, PartialEq)]
pub enum Pass {
    /// Uploads are collected first, and answers in part.
    Collected,
    /// Uploads are collected first, answers pass as they come.
    AnswersStreamed,
    /// Both pass as they come. Once an answer has begun, nginx sends no more of the upload.
    Streamed,
}

/// nginx in front of a host, with one of the fixtures.
pub fn nginx(name: &'static str, host: Host, socket: Socket, fixture: &str, pass: Pass) -> Front {
    let scratch = scratch();
    let hosted = host.start(&scratch, socket);
    let address = free_address();
    let on = |collects| if collects { "on" } else { "off" };
    let values = [
        ("PORT", &*address.port().to_string()),
        ("ADDRESS", &*hosted.nginx),
        ("REQUEST_BUFFERING", on(pass != Pass::Streamed)),
        ("BUFFERING", on(pass == Pass::Collected)),
    ];
    let configuration = scratch.configuration(fixture, &values);
    let mut command = program("/usr/sbin/nginx", "nginx-light");
    command.arg("-c").arg(configuration).arg("-e").arg("stderr");
    let nginx = Server::start(&scratch, "nginx", command, &[]).ready_on(address);
    Front { name, address, servers: vec![nginx, hosted.server], scratch }
}

/// Apache in front of a host.
pub fn apache(name: &'static str, host: Host, socket: Socket) -> Front {
    let scratch = scratch();
    let hosted = host.start(&scratch, socket);
    let address = free_address();
    let (upstream, worker) = match socket {
        Socket::Unix => (format!("unix:{}|fcgi://localhost", hosted.path.display()), "fcgi://localhost".to_owned()),
        Socket::Tcp => (format!("fcgi://{}", hosted.tcp), format!("fcgi://{}", hosted.tcp)),
    };
    let values = [("PORT", &*address.port().to_string()), ("ADDRESS", &*upstream), ("WORKER", &*worker)];
    let configuration = scratch.configuration("apache/scripts.conf", &values);
    let mut command = program("/usr/sbin/apache2", "apache2");
    command.arg("-f").arg(configuration).arg("-DFOREGROUND");
    let apache = Server::start(&scratch, "apache", command, &["error.log"]).ready_on(address);
    Front { name, address, servers: vec![apache, hosted.server], scratch }
}

/// lighttpd in front of a host. `stream` is its own number for how bodies pass: 0 collects them whole, 2 passes them on.
pub fn lighttpd(name: &'static str, host: Host, stream: &str) -> Front {
    let scratch = scratch();
    let hosted = host.start(&scratch, Socket::Unix);
    let address = free_address();
    let socket = hosted.path.display().to_string();
    let values = [("PORT", &*address.port().to_string()), ("STREAM", stream), ("SOCKET", &*socket)];
    let configuration = scratch.configuration("lighttpd/scripts.conf", &values);
    let mut command = program("/usr/sbin/lighttpd", "lighttpd");
    command.arg("-D").arg("-f").arg(configuration);
    let lighttpd = Server::start(&scratch, "lighttpd", command, &["error.log"]).ready_on(address);
    Front { name, address, servers: vec![lighttpd, hosted.server], scratch }
}

/// All rows, those of the languages once for each.
pub async fn rows(front: &Front) {
    let start = Instant::now();
    let folder = front.scratch.path("").display().to_string();
    let folder = folder.trim_end_matches('/');
    let mut failures = Vec::new();
    for language in LANGUAGES {
        // php-cgi wants SCRIPT_FILENAME, which nginx has to send for fcgiwrap, and REDIRECT_STATUS, which Apache has to.
        let lacks = front.is("fcgiwrap/nginx/unix") || front.is("fcgiwrap/apache");
        if *language == "php" && lacks {
            continue;
        }
        let (probe, name) = (format!("probe.{language}"), format!("{language}/{}", front.name));
        let places = [("@DIR@", folder), ("probe.EXT", &*probe)];
        failures.extend(table::failures(front.address, &name, EVERY_LANGUAGE, &places).await);
    }
    note(front.name, "every language", start);
    let start = Instant::now();
    // No file's name may have more than 255 bytes.
    let long = "x".repeat(300);
    failures.extend(table::failures(front.address, front.name, SCRIPTS, &[("@DIR@", folder), ("@LONG@", &long)]).await);
    note(front.name, "the table", start);
    assert!(failures.is_empty(), "{} rows failed:\n{}", failures.len(), failures.join("\n"));
}

const DEADLOCK: &str =
    "fcgiwrap writes to the script until all is written, and reads nothing meanwhile: both wait for ever";
const READS_ALL: &str = "CGI.pm and PHP read all of a form before they write";
const PATTERN: Expect = status(200).body(Pattern(200_000));
const UNREAD: &str = "fcgiwrap gives up when a script does not read all of its input";
const RAW: &str = "fcgiwrap reads no heads: the web server makes of them what it can";
const LENGTH: &str = "lighttpd wants a length unless it collects uploads first";
const NO_SERVER: &str = "fcgiwrap's 403 is for web servers whose configurations count on it";

/// Without SCRIPT_FILENAME, which fcgiwrap does not add.
const FCGIWRAP_VARIABLES: Expect = status(200).body(Lines(
    &["cwd=@DIR@/www/cgi-bin", "SCRIPT_NAME=/cgi-bin/probe.EXT", "PATH_INFO=/environ"],
    &["argument=", "SCRIPT_FILENAME="],
));

pub static EVERY_LANGUAGE: &[Row] = &[
    get_row("the request as variables", "/cgi-bin/probe.EXT/environ?a=1&b=%20x")
        .headers(&[("X-Test", "a,b;c=\"d\""), ("Cookie", "a=1")])
        .expect(status(200).body(Lines(
            &[
                "cwd=@DIR@/www/cgi-bin",
                "GATEWAY_INTERFACE=CGI/1.1",
                "REQUEST_METHOD=GET",
                "SCRIPT_NAME=/cgi-bin/probe.EXT",
                "SCRIPT_FILENAME=@DIR@/www/cgi-bin/probe.EXT",
                "PATH_INFO=/environ",
                "QUERY_STRING=a=1&b=%20x",
                "SERVER_PROTOCOL=HTTP/1.1",
                "REMOTE_ADDR=127.0.0.1",
                "HTTP_X_TEST=a,b;c=\"d\"",
                "HTTP_COOKIE=a=1",
            ],
            &["argument="],
        )))
        .except(&[(
            "*/fcgiwrap/nginx/unix/closed",
            FCGIWRAP_VARIABLES,
            "fcgiwrap tells SCRIPT_FILENAME only to who knows it already",
        )]),
    row("an upload comes back", "POST", "/cgi-bin/probe.EXT/echo")
        .headers(&[("Content-Type", "application/octet-stream")])
        .upload(Upload::Sized(200_000))
        .expect(status(200).headers(&[("Content-Type", "application/octet-stream")]).body(Pattern(200_000)))
        .except(&[
            ("pl/fcgiwrap", PATTERN, READS_ALL),
            ("php/fcgiwrap", PATTERN, READS_ALL),
            ("*/fcgiwrap", status(UNSURE).body(Hangs), DEADLOCK),
        ]),
    row("a chunked upload comes back", "PUT", "/cgi-bin/probe.EXT/echo")
        .headers(&[("Content-Type", "application/octet-stream")])
        .upload(Upload::Chunked(200_000))
        .expect(status(200).body(Pattern(200_000)))
        .except(&[
            // It has one if all of it comes at once.
            ("*/*/lighttpd/streamed", status(UNSURE).body(Whatever), LENGTH),
            ("pl/fcgiwrap/nginx", PATTERN, "nginx collects the upload and says its length"),
            ("pl/fcgiwrap", status(502), "CGI.pm reads nothing without a length, and fcgiwrap then gives up"),
            ("*/fcgiwrap", status(UNSURE).body(Hangs), DEADLOCK),
        ]),
    row("an upload of nothing comes back", "POST", "/cgi-bin/probe.EXT/echo")
        .headers(&[("Content-Type", "application/octet-stream")])
        .upload(Upload::Sized(0))
        .expect(status(200).body(Exactly(""))),
    get_row("a status", "/cgi-bin/probe.EXT/status")
        .expect(status(404).reason("Not Found").body(Exactly("not here\n"))),
    get_row("repeated headers", "/cgi-bin/probe.EXT/cookies")
        .expect(status(200).headers(&[("Set-Cookie", "a=1 | a=2")]).body(Exactly("cookies\n"))),
    get_row("a redirect", "/cgi-bin/probe.EXT/redirect")
        .expect(status(302).headers(&[("Location", "http://example.com/elsewhere")]))
        .except(&[
            ("pl", status(302), "CGI.pm sends the status with it"),
            (
                "*/fcgiwrap/apache",
                status(200),
                "Apache makes no 302 of a Location without Status, and fcgiwrap leaves it to Apache",
            ),
        ]),
    get_row("a line for the log", "/cgi-bin/probe.EXT/errors?a-line-for-the-log")
        .expect(status(200).body(Exactly("logged\n"))),
    row("HEAD has no body", "HEAD", "/cgi-bin/probe.EXT/status").expect(status(404).body(Exactly(""))),
];

/// The misbehaving ones are all in one folder.
macro_rules! misbehaving {
    ($name:literal) => {
        concat!("/cgi-bin/misbehaving/", $name, ".sh")
    };
}

pub static SCRIPTS: &[Row] = &[
    // The address.
    get_row("no PATH_INFO", "/cgi-bin/probe.sh")
        .expect(status(200).body(Lines(&["SCRIPT_NAME=/cgi-bin/probe.sh"], &["PATH_INFO=/"]))),
    get_row("PATH_INFO is decoded", "/cgi-bin/probe.sh/a%20b/%C3%A9t%C3%A9")
        .expect(lines(&["PATH_INFO=/a b/été", "REQUEST_URI=/cgi-bin/probe.sh/a%20b/%C3%A9t%C3%A9"])),
    get_row("PATH_TRANSLATED", "/cgi-bin/probe.sh/a/b").expect(lines(&["PATH_TRANSLATED=@DIR@/www/a/b"])).except(&[
        ("fcgiwrap/lighttpd", lines(&["PATH_TRANSLATED=@DIR@/www/a/b"]), "lighttpd makes it itself"),
        ("fcgiwrap", status(200), "fcgiwrap makes no PATH_TRANSLATED"),
        (
            "gatespan/apache",
            lines(&["PATH_TRANSLATED=@DIR@/htdocs/a/b"]),
            "Apache's document root is not where its scripts are",
        ),
        (
            "gatespan/http",
            lines(&["PATH_TRANSLATED=@DIR@/www/cgi-bin/a/b"]),
            "without a web server, the folder of the scripts is the document root",
        ),
    ]),
    get_row("a script in a folder", misbehaving!("count")).expect(status(200).body(Exactly("0\n"))),
    get_row("a script with a space in its name", "/cgi-bin/with%20space.sh")
        .expect(status(200).body(Exactly("a space\n"))),
    get_row("a link within the folder", "/cgi-bin/link-inside.sh").expect(status(200).body(Exactly("a space\n"))),
    get_row("words are no arguments", "/cgi-bin/probe.sh?-s+word")
        .expect(status(200).body(Lines(&["QUERY_STRING=-s+word"], &["argument="]))),
    get_row("Proxy: does not become HTTP_PROXY", "/cgi-bin/probe.sh")
        .headers(&[("Proxy", "http://evil.example")])
        .expect(status(200).body(Lines(&["REQUEST_METHOD=GET"], &["HTTP_PROXY"])))
        .except(&[(
            "fcgiwrap/nginx",
            lines(&["HTTP_PROXY=http://evil.example"]),
            "nginx and fcgiwrap let it through: CVE-2016-5385",
        )]),
    get_row("Authorization", "/cgi-bin/probe.sh")
        .headers(&[("Authorization", "Basic YTpi")])
        .expect(lines(&["HTTP_AUTHORIZATION=Basic YTpi"])),
    // dash itself opens 10, the script, and 3, the folder that it shows.
    get_row("only three descriptors", misbehaving!("holds-descriptors"))
        .expect(status(200).body(Exactly("0\n1\n10\n2\n3\n")))
        .except(&[("fcgiwrap", lines(&[INHERITED]), "fcgiwrap passes on what it inherited")]),
    // Input.
    row("an unread upload of 5 MB", "POST", misbehaving!("unread"))
        .upload(Upload::Sized(5_000_000))
        .expect(status(200).body(Exactly("unread\n")))
        .except(&[("fcgiwrap", status(502), UNREAD)]),
    row("an upload to who closes his input", "POST", misbehaving!("closed-input"))
        .upload(Upload::Sized(5_000_000))
        .expect(status(200).body(Exactly("closed\n")))
        .except(&[("fcgiwrap", status(502), UNREAD)]),
    row("a partly read upload", "POST", misbehaving!("partly-read"))
        .upload(Upload::Sized(5_000_000))
        .expect(status(200).body(Exactly("10\n")))
        .except(&[("fcgiwrap", status(502), UNREAD)]),
    row("a slowly read upload", "POST", misbehaving!("reads-slowly"))
        .upload(Upload::Sized(5_000_000))
        .expect(status(200).body(Exactly("5000000\n"))),
    row("an upload of 5 MB", "POST", misbehaving!("count"))
        .upload(Upload::Sized(5_000_000))
        .expect(status(200).body(Exactly("5000000\n"))),
    row("an upload that is read behind the head", "POST", misbehaving!("head-first"))
        .upload(Upload::Sized(5_000_000))
        .expect(status(200).body(Exactly("5000000\n"))),
    row("a chunked upload of 5 MB", "POST", misbehaving!("count"))
        .upload(Upload::Chunked(5_000_000))
        .expect(status(200).body(Exactly("5000000\n")))
        .except(&[("*/lighttpd/streamed", status(411), LENGTH)]),
    row("a chunked upload has a length", "POST", "/cgi-bin/probe.sh/environ")
        .upload(Upload::Chunked(100_000))
        .expect(lines(&["CONTENT_LENGTH=100000"]))
        .except(&[("*/lighttpd/streamed", status(UNSURE).body(Whatever), LENGTH), ("fcgiwrap", status(502), UNREAD)]),
    // Ends.
    get_row("less than was announced", misbehaving!("short")).expect(status(200).body(Cut(50))).except(&[(
        "fcgiwrap/nginx/tcp/kept",
        status(UNSURE).body(Hangs),
        "nginx awaits the rest on the connection that it keeps",
    )]),
    get_row("more than was announced", misbehaving!("long")).expect(status(200).body(Exactly("right"))),
    get_row("killed before its head", misbehaving!("killed-before")).expect(status(502)),
    get_row("killed in its answer", misbehaving!("killed-after")).expect(status(200).body(Cut(14))).except(&[
        ("fcgiwrap", status(200).body(Exactly("the first half")), "fcgiwrap does not ask how a script ended"),
        ("gatespan/lighttpd", status(200).body(Whatever), "lighttpd takes what comes at once for whole"),
    ]),
    get_row("a failure before its head", misbehaving!("failure-before")).expect(status(502)),
    get_row("a failure after its answer", misbehaving!("failure-after"))
        .expect(status(200).body(Exactly("all of it\n"))),
    get_row("nothing at all", misbehaving!("silent")).expect(status(502)),
    // Heads.
    get_row("a head without end", misbehaving!("head-without-end")).expect(status(502)).except(&[(
        "fcgiwrap/apache",
        status(UNSURE).body(Hangs),
        RAW,
    )]),
    get_row("half a head", misbehaving!("head-not-ended"))
        .expect(status(502))
        .except(&[("fcgiwrap/apache", status(200), RAW), ("fcgiwrap/lighttpd", status(500), RAW)]),
    get_row("garbage", misbehaving!("head-of-garbage")).expect(status(502)).except(&[(
        "fcgiwrap/apache",
        status(500),
        RAW,
    )]),
    get_row("no head", misbehaving!("head-missing"))
        .expect(status(502))
        .except(&[("fcgiwrap/apache", status(500), RAW), ("fcgiwrap/nginx", status(UNSURE).body(Broken), RAW)]),
    get_row("an empty head", misbehaving!("head-empty")).expect(status(502)),
    get_row("no Content-Type", misbehaving!("head-without-type")).expect(status(200)),
    get_row("bare line feeds", misbehaving!("head-of-line-feeds"))
        .expect(status(200).headers(&[("X-One", "1"), ("X-Two", "2")]).body(Exactly("all of it\n"))),
    get_row("a carriage return in a value", misbehaving!("head-split")).expect(status(502)).except(&[(
        "fcgiwrap",
        status(200).headers(&[("Set-Cookie", "evil=1")]),
        RAW,
    )]),
    get_row("NUL in a value", misbehaving!("head-nul")).expect(status(502)).except(&[
        ("fcgiwrap/apache", status(200).headers(&[("X-Nul", "a")]), RAW),
        ("fcgiwrap/lighttpd", status(UNSURE).body(Broken), RAW),
    ]),
    get_row("a folded header", misbehaving!("head-folded"))
        .expect(status(502))
        .except(&[("fcgiwrap/apache", status(500), RAW), ("fcgiwrap/lighttpd", status(200), RAW)]),
    get_row("a line without a colon", misbehaving!("head-no-colon"))
        .expect(status(502))
        .except(&[("fcgiwrap/apache", status(500), RAW), ("fcgiwrap/lighttpd", status(200), RAW)]),
    get_row("a head of 20 KB", misbehaving!("head-large")).expect(status(200)).except(&[
        ("*/nginx", status(502), "a head must fit fastcgi_buffer_size, 4 KiB by default"),
        ("*/apache", status(500), "Apache takes no header of more than 8 KiB"),
    ]),
    get_row("a status that is none", misbehaving!("status-bad")).expect(status(502)).except(&[(
        "fcgiwrap/apache",
        status(500),
        RAW,
    )]),
    get_row("two statuses", misbehaving!("status-twice"))
        .expect(status(502))
        .except(&[("fcgiwrap/nginx", status(404), RAW), ("fcgiwrap", status(200), RAW)]),
    get_row("an interim status", misbehaving!("status-interim")).expect(status(502)).except(&[
        ("fcgiwrap/nginx", status(UNSURE).body(Broken), RAW),
        ("fcgiwrap/apache", status(UNSURE).body(Broken), RAW),
    ]),
    get_row("204 with content", misbehaving!("status-no-content")).expect(status(204).body(Exactly(""))),
    get_row("304 with content", misbehaving!("status-not-modified")).expect(status(304).body(Exactly(""))),
    get_row("a length that is none", misbehaving!("length-bad"))
        .expect(status(502))
        .except(&[("fcgiwrap/nginx", status(200), RAW), ("fcgiwrap", status(UNSURE).body(Broken), RAW)]),
    get_row("two lengths", misbehaving!("length-twice")).expect(status(502)).except(&[("fcgiwrap", status(200), RAW)]),
    get_row("a body in chunks", misbehaving!("chunked")).expect(status(502)).except(&[
        ("fcgiwrap/lighttpd", status(200).body(Whatever), "lighttpd passes it on or decodes it, as it comes"),
        ("fcgiwrap", status(200).body(Exactly("a\r\nall of it\n\r\n0\r\n\r\n")), RAW),
    ]),
    get_row("headers of the connection", misbehaving!("hop-by-hop")).expect(status(200).body(Exactly("all of it\n"))),
    // Errors.
    get_row("10 MB of errors", misbehaving!("floods-errors")).expect(status(200).body(Exactly("flooded\n"))).except(&[
        (
            "fcgiwrap/nginx",
            status(UNSURE).body(Whatever),
            "with -f, so many errors may fill the buffer that nginx has for the head",
        ),
    ]),
    get_row("errors without an end of line", misbehaving!("errors-without-end"))
        .expect(status(200).body(Exactly("answered\n"))),
    // Size and time.
    get_row("an answer of 50 MB", "/cgi-bin/misbehaving/huge.sh?50000000").expect(status(200).body(Any)),
    get_row("an answer after a second", "/cgi-bin/misbehaving/sleeps-before.sh?1")
        .expect(status(200).body(Exactly("awake\n"))),
    get_row("an answer with a pause", "/cgi-bin/misbehaving/sleeps-between.sh?1")
        .expect(status(200).body(Exactly("first\nsecond\n"))),
    // Kinds of answers: RFC 3875 section 6.2.
    get_row("a client redirect", misbehaving!("redirect-elsewhere"))
        .expect(status(302).headers(&[("Location", "http://example.com/elsewhere?a=b")]))
        .except(&[(
            "fcgiwrap/apache",
            status(200),
            "Apache makes no 302 of a Location without Status, and fcgiwrap leaves it to Apache",
        )]),
    get_row("a client redirect with a document", misbehaving!("redirect-with-document")).expect(
        status(301).headers(&[("Location", "http://example.com/elsewhere")]).body(Exactly("it is elsewhere\n")),
    ),
    get_row("a local redirect", "/cgi-bin/misbehaving/redirect-here.sh?/cgi-bin/probe.sh/there")
        .expect(lines(&["REQUEST_METHOD=GET", "PATH_INFO=/there"]))
        .except(&[
            ("fcgiwrap/apache", status(200), "fcgiwrap runs no local redirects: the client is sent there"),
            ("fcgiwrap", status(302), "fcgiwrap runs no local redirects: the client is sent there"),
        ]),
    get_row("a local redirect in circles", misbehaving!("redirect-in-circles")).expect(status(508)).except(&[
        ("fcgiwrap/apache", status(200), "fcgiwrap runs no local redirects: the client is sent there"),
        ("fcgiwrap", status(302), "fcgiwrap runs no local redirects: the client is sent there"),
    ]),
    get_row("X-Accel-Redirect", "/cgi-bin/misbehaving/accel-redirect.sh?/internal/file.txt")
        .expect(status(200).body(Exactly("an internal file\n")))
        .except(&[
            ("*/apache", status(200).headers(&[("X-Accel-Redirect", "/internal/file.txt")]), "a header of nginx"),
            ("*/lighttpd", status(200).headers(&[("X-Accel-Redirect", "/internal/file.txt")]), "a header of nginx"),
        ]),
    get_row("a script that speaks HTTP", misbehaving!("nph-hello"))
        .expect(status(203).reason("As it were").headers(&[("X-Nph", "yes")]).body(Exactly("all of it\n")))
        .except(&[
            (
                "*/lighttpd",
                status(203).reason("Non-Authoritative Information"),
                "lighttpd writes the reasons that it knows, and no others",
            ),
            ("fcgiwrap/apache", status(500), "fcgiwrap knows nothing of scripts that speak HTTP"),
            ("fcgiwrap", status(200), "fcgiwrap knows nothing of scripts that speak HTTP"),
        ]),
    get_row("a script that speaks HTTP, with an interim response", misbehaving!("nph-interim"))
        .expect(status(200).headers(&[("Link", "")]).body(Exactly("all of it\n")))
        .except(&[
            (
                "fcgiwrap/nginx",
                status(200).headers(&[("Link", "</style.css>; rel=preload")]),
                "fcgiwrap knows nothing of scripts that speak HTTP",
            ),
            ("fcgiwrap/apache", status(500), "fcgiwrap knows nothing of scripts that speak HTTP"),
        ]),
    get_row("a script that speaks HTTP, in chunks", misbehaving!("nph-chunked")).expect(status(502)).except(&[
        ("fcgiwrap/lighttpd", status(200).body(Exactly("all of it\n")), "lighttpd understands it"),
        (
            "fcgiwrap/nginx",
            status(200).body(Exactly("4\r\nall \r\n6\r\nof it\n\r\n0\r\n\r\n")),
            "fcgiwrap knows nothing of scripts that speak HTTP",
        ),
        ("fcgiwrap/apache", status(500), "fcgiwrap knows nothing of scripts that speak HTTP"),
    ]),
    get_row("a script that is named so and does not", misbehaving!("nph-as-cgi"))
        .expect(status(203).reason("As it were").body(Exactly("all of it\n")))
        .except(&[(
            "*/lighttpd",
            status(203).reason("Non-Authoritative Information"),
            "lighttpd writes the reasons that it knows, and no others",
        )]),
    get_row("a script that speaks HTTP and is not named so", misbehaving!("speaks-http")).expect(status(203)).except(
        &[
            ("fcgiwrap/nginx", status(200), "fcgiwrap knows nothing of scripts that speak HTTP"),
            ("fcgiwrap/apache", status(500), "fcgiwrap knows nothing of scripts that speak HTTP"),
            ("fcgiwrap/lighttpd", status(203), "fcgiwrap knows nothing of scripts that speak HTTP"),
        ],
    ),
    // What is no script, or may not be run.
    get_row("what is not there", "/cgi-bin/nowhere.sh").expect(status(403)).except(&[
        ("*/lighttpd", status(404), "lighttpd looks for the script itself"),
        ("gatespan/http", status(404), NO_SERVER),
    ]),
    get_row("what is not there, with PATH_INFO", "/cgi-bin/nowhere.sh/a/b").expect(status(403)).except(&[
        ("*/lighttpd", status(404), "lighttpd looks for the script itself"),
        ("gatespan/http", status(404), NO_SERVER),
    ]),
    get_row("a folder", "/cgi-bin/folder.sh").expect(status(403)).except(&[(
        "*/lighttpd",
        status(301),
        "lighttpd looks for the script itself",
    )]),
    get_row("a folder with a slash", "/cgi-bin/misbehaving/").expect(status(403)),
    get_row("a socket", "/cgi-bin/socket.sh").expect(status(403)),
    get_row("a fifo", "/cgi-bin/fifo.sh").expect(status(403)),
    get_row("a device", "/cgi-bin/device.sh").expect(status(403)),
    get_row("a link to nowhere", "/cgi-bin/link-nowhere.sh").expect(status(403)).except(&[
        ("*/lighttpd", status(404), "lighttpd looks for the script itself"),
        ("gatespan/http", status(404), NO_SERVER),
    ]),
    get_row("a link out of the folder", "/cgi-bin/link-outside.sh").expect(status(403)).except(&[(
        "fcgiwrap",
        status(200),
        "fcgiwrap has no folder of its own, and runs whatever it is told",
    )]),
    get_row("a script that all can write to", "/cgi-bin/writable.sh").expect(status(403)).except(&[(
        "fcgiwrap",
        status(200),
        "fcgiwrap has no folder of its own, and runs whatever it is told",
    )]),
    get_row("no right to execute", misbehaving!("not-executable")).expect(status(403)),
    get_row("no shebang", misbehaving!("no-shebang")).expect(status(500)).except(&[(
        "fcgiwrap",
        status(502),
        "fcgiwrap has started a process by then, which fails",
    )]),
    get_row("an interpreter that is not there", misbehaving!("no-interpreter")).expect(status(500)).except(&[(
        "fcgiwrap",
        status(502),
        "fcgiwrap has started a process by then, which fails",
    )]),
    get_row("a shebang with a carriage return", misbehaving!("carriage-return")).expect(status(500)).except(&[(
        "fcgiwrap",
        status(502),
        "fcgiwrap has started a process by then, which fails",
    )]),
    get_row("an over-long name", "/cgi-bin/@LONG@.sh").expect(status(403)).except(&[
        ("*/lighttpd", status(404), "lighttpd looks for the script itself"),
        ("*/apache", status(403), "Apache looks for the script itself"),
        ("gatespan", status(414), "the path is too long to be anyone's"),
    ]),
    get_row("and all is well after that", "/cgi-bin/hello.cgi").expect(status(200).body(Exactly("Hello, world\n"))),
];
