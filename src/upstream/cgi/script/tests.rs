//! Scripts looked for among real files, links, rights and owners.

use std::os::unix::fs::{chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode};
use tempfile::TempDir;

use super::*;
use crate::application::Server;
use crate::upstream::cgi::spawn::Identity;

/// Somebody who is not root.
const NOBODY: Option<u32> = Some(65534);

/// A folder with a folder `cgi`, the root, in it.
struct Site {
    folder: TempDir,
}

impl Site {
    /// With a script `a.cgi`, and `b.cgi` in a folder `in`.
    fn new() -> Self {
        let site = Self { folder: tempfile::tempdir().unwrap() };
        site.folder("cgi/in");
        site.script("cgi/a.cgi");
        site.script("cgi/in/b.cgi");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.folder.path()).unwrap().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().into()
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn folder(&self, name: &str) {
        fs::create_dir_all(self.path(name)).unwrap();
        self.mode(name, 0o755);
    }

    fn script(&self, name: &str) {
        fs::write(self.path(name), "#!/bin/sh\n").unwrap();
        self.mode(name, 0o755);
    }

    fn link(&self, name: &str, target: impl AsRef<Path>) {
        symlink(target, self.path(name)).unwrap();
    }

    fn config(&self) -> Config {
        Config { roots: vec![self.path("cgi")], ..Config::default() }
    }

    fn finder(&self) -> Finder {
        Finder::new(&self.config()).unwrap()
    }

    /// What is found for PATH_INFO: SCRIPT_NAME and PATH_INFO, or the status.
    fn walked(&self, path: &str) -> Result<(String, String), u16> {
        split(&self.finder(), &[("PATH_INFO", path)])
    }
}

fn found(name: &str, rest: &str) -> Result<(String, String), u16> {
    Ok((name.into(), rest.into()))
}

fn find(finder: &Finder, variables: &[(&str, &str)]) -> Result<Script, Failure> {
    finder.find(&Environ::new(variables.iter().copied().collect()))
}

fn split(finder: &Finder, variables: &[(&str, &str)]) -> Result<(String, String), u16> {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    match find(finder, variables) {
        Ok(script) => Ok((text(script.script_name), text(script.path_info))),
        Err(failure) => Err(failure.status()),
    }
}

/// Whether these tests run as root: only root can give links away.
fn as_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn the_first_regular_file_on_the_path_is_the_script() {
    let site = Site::new();
    for (path, expected) in [
        ("/a.cgi", found("/a.cgi", "")),
        ("/a.cgi/", found("/a.cgi", "/")),
        ("/a.cgi/x/y", found("/a.cgi", "/x/y")),
        ("/in/b.cgi", found("/in/b.cgi", "")),
        ("/in/b.cgi/a.cgi", found("/in/b.cgi", "/a.cgi")),
        // The rest is the script's own business.
        ("/a.cgi//x/../\\/.", found("/a.cgi", "//x/../\\/.")),
        ("/a.cgi/x\ny\r", found("/a.cgi", "/x\ny\r")),
        ("/A.CGI", Err(404)),
        ("/a.cgi\n", Err(404)),
        ("/a", Err(404)),
        ("/b.cgi", Err(404)),
        ("/in/a.cgi", Err(404)),
        ("/in", Err(403)),
        ("/in/", Err(403)),
        ("/", Err(403)),
        ("", Err(403)),
    ] {
        assert_eq!(site.walked(path), expected, "{path:?}");
    }
    let mounted = [("SCRIPT_NAME", "/mount"), ("PATH_INFO", "/in/b.cgi/x")];
    assert_eq!(split(&site.finder(), &mounted), found("/mount/in/b.cgi", "/x"));
}

#[test]
fn what_a_script_is_told_of_itself() {
    let site = Site::new();
    site.script("cgi/in/c.cgi");
    let script = find(&site.finder(), &[("PATH_INFO", "/in/c.cgi/x")]).unwrap();
    assert_eq!(script.file, site.path("cgi/in/c.cgi"));
    assert_eq!(script.script_filename, script.file);
    assert_eq!(script.directory, site.path("cgi/in"));
    assert_eq!(script.program.to_str().unwrap(), site.text("cgi/in/c.cgi"));
    assert_eq!(script.arguments, std::slice::from_ref(&script.program));
    assert_eq!(script.document_root, Some(site.path("cgi")));
    assert_eq!(script.path_translated, Some(site.text("cgi/x").into_bytes()));
}

#[test]
fn roots_are_tried_in_order() {
    let site = Site::new();
    site.folder("other/in");
    site.script("other/a.cgi");
    site.script("other/in/c.cgi");
    let roots = vec![site.path("cgi"), site.path("other")];
    let finder = Finder::new(&Config { roots, ..Config::default() }).unwrap();
    let file = |path: &str| find(&finder, &[("PATH_INFO", path)]).unwrap().file;
    assert_eq!(file("/a.cgi"), site.path("cgi/a.cgi"));
    assert_eq!(file("/in/b.cgi"), site.path("cgi/in/b.cgi"));
    assert_eq!(file("/in/c.cgi"), site.path("other/in/c.cgi"));
    let failure = find(&finder, &[("PATH_INFO", "/d.cgi")]).unwrap_err();
    assert_eq!(failure.status(), 404);
    for looked in ["cgi/d.cgi", "other/d.cgi"] {
        assert!(failure.cause().contains(&site.text(looked)), "{failure}");
    }
    fs::remove_dir_all(site.path("cgi")).unwrap();
    assert_eq!(file("/a.cgi"), site.path("other/a.cgi"));
}

#[test]
fn traversal_is_refused_in_every_spelling() {
    let site = Site::new();
    site.script("outside.cgi");
    let long = format!("/{}", "a".repeat(256));
    let deep = "/in".repeat(2000);
    for (path, status) in [
        ("/../outside.cgi", 400),
        ("/in/../a.cgi", 400),
        ("/in/../../outside.cgi", 400),
        ("/./a.cgi", 400),
        ("//a.cgi", 400),
        ("/in//b.cgi", 400),
        ("/in//", 400),
        ("/..", 400),
        ("/.", 400),
        ("/..\\outside.cgi", 400),
        ("\\..\\outside.cgi", 400),
        ("/in\\b.cgi", 400),
        ("/a.cgi\0", 400),
        ("/a.cgi/\0x", 400),
        ("a.cgi", 400),
        ("../outside.cgi", 400),
        // Encoded twice, or not as UTF-8 has it: names as any other, which are not there.
        ("/%2e%2e/outside.cgi", 404),
        ("/..%2foutside.cgi", 404),
        ("/\u{ff0e}\u{ff0e}/outside.cgi", 404),
        ("/.../outside.cgi", 404),
        (&long, 414),
        (&deep, 404),
    ] {
        assert_eq!(site.walked(path), Err(status), "{path:.40?}");
    }
    for path in [&b"/\xc0\xae\xc0\xae/outside.cgi"[..], b"/\xff", b"/a.cgi\xff"] {
        let environ = Environ::new([(&b"PATH_INFO"[..], path)].into_iter().collect());
        assert_eq!(site.finder().find(&environ).unwrap_err().status(), 404, "{path:?}");
    }
    let mut deep = String::new();
    while site.text("cgi").len() + deep.len() < MAX_PATH_LEN - 200 {
        deep.push_str(&format!("/{}", "d".repeat(50)));
    }
    site.folder(&format!("cgi{deep}"));
    deep.push_str(&format!("/{}", "d".repeat(255)));
    assert_eq!(site.walked(&deep), Err(414));
}

#[test]
fn a_slash_that_was_encoded_is_none_in_the_scripts_part() {
    let site = Site::new();
    for (uri, path, expected) in [
        ("/in%2fb.cgi", "/in/b.cgi", Err(400)),
        ("/in%2Fb.cgi?q", "/in/b.cgi", Err(400)),
        ("http://host/in%2Fb.cgi", "/in/b.cgi", Err(400)),
        ("/%69n/b.cgi", "/in/b.cgi", found("/in/b.cgi", "")),
        ("/in/b.cgi/x%2fy", "/in/b.cgi/x/y", found("/in/b.cgi", "/x/y")),
        ("/in/b.cgi%2fy", "/in/b.cgi/y", found("/in/b.cgi", "/y")),
        ("/in/b.cgi?x%2fy", "/in/b.cgi", found("/in/b.cgi", "")),
        // Another path than this one: the web server rewrote it, and judged for itself.
        ("/x%2fy", "/in/b.cgi", found("/in/b.cgi", "")),
        ("/in%2", "/in/b.cgi", found("/in/b.cgi", "")),
        ("*", "/in/b.cgi", found("/in/b.cgi", "")),
    ] {
        let sent = [("REQUEST_URI", uri), ("PATH_INFO", path)];
        assert_eq!(split(&site.finder(), &sent), expected, "{uri}");
    }
    let mounted = [("REQUEST_URI", "/m%2fin/b.cgi"), ("SCRIPT_NAME", "/m"), ("PATH_INFO", "/in/b.cgi")];
    assert_eq!(split(&site.finder(), &mounted), Err(400));
}

#[test]
fn only_a_regular_file_is_a_script() {
    let site = Site::new();
    let _socket = UnixListener::bind(site.path("cgi/socket")).unwrap();
    rustix::fs::mknodat(CWD, site.path("cgi/fifo"), FileType::Fifo, Mode::from_raw_mode(0o755), 0).unwrap();
    let device = rustix::fs::makedev(1, 3);
    let made = rustix::fs::mknodat(CWD, site.path("cgi/device"), FileType::CharacterDevice, Mode::RWXU, device);
    for (name, kind) in [("socket", "a socket"), ("fifo", "a fifo"), ("device", "a character device")] {
        if name == "device" && made.is_err() {
            continue;
        }
        for path in [format!("/{name}"), format!("/{name}/a.cgi")] {
            let failure = find(&site.finder(), &[("PATH_INFO", &path)]).unwrap_err();
            assert_eq!(failure.status(), 403);
            assert!(failure.cause().contains(kind), "{failure}");
        }
        site.link(&format!("cgi/to-{name}"), name);
        assert_eq!(site.walked(&format!("/to-{name}")), Err(403));
    }
}

#[test]
fn a_script_may_be_executed_or_has_an_interpreter_for_its_ending() {
    let site = Site::new();
    for name in ["cgi/x.py", "cgi/x.tar.py", "cgi/x.pyc"] {
        site.script(name);
        site.mode(name, 0o644);
    }
    let failure = find(&site.finder(), &[("PATH_INFO", "/x.py/rest")]).unwrap_err();
    assert_eq!(failure.status(), 403);
    assert!(failure.cause().contains("0644: no exec bit is set"), "{failure}");
    assert!(failure.mend().contains("chmod +x"), "{}", failure.mend());
    let interpreters = vec![(".py".into(), "/bin/sh".into()), (".tar.py".into(), "/bin/cat".into())];
    let finder = Finder::new(&Config { interpreters, ..site.config() }).unwrap();
    let script = find(&finder, &[("PATH_INFO", "/x.py/rest")]).unwrap();
    assert_eq!(script.program, c"/bin/sh".to_owned());
    assert_eq!(script.arguments, [c"/bin/sh".to_owned(), c_string(site.text("cgi/x.py").into())]);
    assert_eq!(find(&finder, &[("PATH_INFO", "/x.tar.py")]).unwrap().program, c"/bin/cat".to_owned());
    assert_eq!(split(&finder, &[("PATH_INFO", "/x.pyc")]), Err(403));
    assert_eq!(find(&finder, &[("PATH_INFO", "/a.cgi")]).unwrap().arguments.len(), 1);
}

#[test]
fn the_right_to_execute_is_asked_of_the_system_unless_scripts_run_as_another_user() {
    let site = Site::new();
    site.mode("cgi/a.cgi", 0o611);
    assert_eq!(site.walked("/a.cgi").is_ok(), as_root(), "the owner's bits count for the owner, unless it is root");
    let identity = Some(Identity { uid: 65534, gid: 65534, groups: Vec::new() });
    let finder = Finder::new(&Config { identity, ..site.config() }).unwrap();
    assert_eq!(split(&finder, &[("PATH_INFO", "/a.cgi")]), found("/a.cgi", ""));
    site.mode("cgi/a.cgi", 0o644);
    assert_eq!(split(&finder, &[("PATH_INFO", "/a.cgi")]), Err(403));
}

#[test]
fn what_others_can_write_to_is_not_run() {
    let site = Site::new();
    for (name, mode, path) in [
        ("cgi/a.cgi", 0o757, "/a.cgi"),
        ("cgi/a.cgi", 0o777, "/a.cgi"),
        ("cgi/in", 0o757, "/in/b.cgi"),
        ("cgi/in", 0o1777, "/in/b.cgi"),
        ("cgi", 0o1777, "/a.cgi"),
        ("cgi", 0o777, "/in/b.cgi"),
    ] {
        let finder = site.finder();
        let before = fs::metadata(site.path(name)).unwrap().permissions().mode();
        site.mode(name, mode);
        let failure = find(&finder, &[("PATH_INFO", path)]).unwrap_err();
        assert!(matches!(failure, Failure::Writable { .. }), "{failure}");
        assert_eq!(failure.status(), 403);
        assert_eq!(failure.mend(), format!("chmod o-w {}", site.text(name)));
        site.mode(name, before & 0o7777);
        assert!(find(&finder, &[("PATH_INFO", path)]).is_ok());
    }
    site.mode("cgi/in", 0o2775);
    site.mode("cgi/in/b.cgi", 0o775);
    assert!(site.walked("/in/b.cgi").is_ok(), "the group is the administrator's word");
}

#[test]
fn links_within_the_roots_are_followed_whoever_made_them() {
    let site = Site::new();
    site.folder("second/deep");
    site.script("second/deep/d.cgi");
    site.link("cgi/relative", "in/b.cgi");
    site.link("cgi/in/up", "../a.cgi");
    site.link("cgi/absolute", site.path("cgi/in"));
    site.link("cgi/second", site.path("second"));
    site.link("cgi/chain", "absolute/../relative");
    site.link("cgi/long", format!("../{}/in/./b.cgi", site.path("cgi").file_name().unwrap().display()));
    for name in ["relative", "in/up", "absolute", "second", "chain", "long"] {
        if as_root() {
            lchown(site.path("cgi").join(name), NOBODY, NOBODY).unwrap();
        }
    }
    let roots = vec![site.path("cgi"), site.path("second")];
    let finder = Finder::new(&Config { roots, ..Config::default() }).unwrap();
    for (path, file) in [
        ("/relative/x", "cgi/in/b.cgi"),
        ("/in/up", "cgi/a.cgi"),
        ("/absolute/b.cgi", "cgi/in/b.cgi"),
        ("/absolute/up", "cgi/a.cgi"),
        ("/second/deep/d.cgi", "second/deep/d.cgi"),
        ("/chain", "cgi/in/b.cgi"),
        ("/long", "cgi/in/b.cgi"),
    ] {
        let script = find(&finder, &[("PATH_INFO", path)]).unwrap();
        assert_eq!(script.file, site.path(file), "{path}");
        let shown = path.strip_suffix("/x").unwrap_or(path);
        assert_eq!(script.script_filename, site.path("cgi").join(&shown[1..]));
        assert_eq!(script.directory, script.script_filename.parent().unwrap());
        assert_eq!(script.arguments[0].to_bytes(), script.script_filename.as_os_str().as_bytes());
        assert_eq!(script.program.to_bytes(), script.file.as_os_str().as_bytes());
    }
}

#[test]
fn links_lead_out_of_a_root_only_where_root_owns_link_and_folder() {
    let site = Site::new();
    site.folder("lib/deep");
    site.script("lib/x.cgi");
    site.script("lib/deep/y.cgi");
    site.link("cgi/file", site.path("lib/x.cgi"));
    site.link("cgi/relative", "../lib/x.cgi");
    site.link("cgi/folder", "../lib");
    site.link("cgi/slash", "/");
    site.link("lib/alternative", "deep/y.cgi");
    site.link("cgi/chain", "../lib/alternative");
    site.link("cgi/in/file", "../../lib/x.cgi");
    site.link("cgi/gone", "../lib/gone");
    let paths = ["/file", "/relative", "/folder/x.cgi", "/folder/deep/y.cgi/rest", "/chain", "/in/file"];
    for path in paths {
        match (as_root(), site.walked(path)) {
            (true, result) => assert!(result.is_ok(), "{path}: {result:?}"),
            (false, result) => assert_eq!(result, Err(403), "{path}"),
        }
    }
    if !as_root() {
        return;
    }
    assert_eq!(site.walked("/gone"), Err(404));
    let outside = |path: &str, owned: &str| {
        lchown(site.path(owned), NOBODY, NOBODY).unwrap();
        let failure = find(&site.finder(), &[("PATH_INFO", path)]).unwrap_err();
        assert!(matches!(failure, Failure::OutsideRoot { link: Some(_), .. }), "{path}, {owned}: {failure}");
        assert_eq!(failure.status(), 403);
        lchown(site.path(owned), Some(0), Some(0)).unwrap();
    };
    outside("/file", "cgi/file");
    outside("/relative", "cgi/relative");
    outside("/folder/x.cgi", "cgi/folder");
    outside("/folder/deep/y.cgi", "cgi/folder");
    // What is not there, or no script, looks like what is.
    outside("/folder/none", "cgi/folder");
    outside("/folder/deep", "cgi/folder");
    outside("/folder/none", "cgi");
    outside("/gone", "cgi/gone");
    outside("/slash/etc/passwd", "cgi/slash");
    outside("/slash/dev/null", "cgi/slash");
    // Each link of a chain, and each folder that one lies in.
    outside("/chain", "cgi/chain");
    outside("/chain", "lib/alternative");
    outside("/chain", "lib");
    outside("/file", "cgi");
    outside("/in/file", "cgi/in");
    // The owner of what it leads to is not asked for; who can write there is.
    chown(site.path("lib/x.cgi"), NOBODY, NOBODY).unwrap();
    assert!(site.walked("/file").is_ok());
    for (name, mode, path) in
        [("lib", 0o757, "/file"), ("lib", 0o1777, "/file"), ("lib/x.cgi", 0o757, "/file"), ("lib", 0o757, "/chain")]
    {
        let before = fs::metadata(site.path(name)).unwrap().permissions().mode();
        site.mode(name, mode);
        assert_eq!(site.walked(path), Err(403), "{name} {mode:o}");
        site.mode(name, before & 0o7777);
        assert!(site.walked(path).is_ok());
    }
    // A sticky folder further up keeps others from renaming what is root's, and from nothing else.
    site.mode("lib", 0o1777);
    assert!(site.walked("/folder/deep/y.cgi").is_ok());
    chown(site.path("lib/deep"), NOBODY, NOBODY).unwrap();
    assert_eq!(site.walked("/folder/deep/y.cgi"), Err(403));
}

#[test]
fn links_that_go_round_or_nowhere_are_refused() {
    let site = Site::new();
    site.link("cgi/round", "round");
    site.link("cgi/there", "back");
    site.link("cgi/back", "there/x");
    site.link("cgi/nowhere", "none");
    site.link("cgi/behind", "a.cgi/x");
    site.link("cgi/file-slash", "a.cgi/");
    for (path, status) in
        [("/round", 403), ("/there/b.cgi", 403), ("/nowhere", 404), ("/nowhere/a.cgi", 404), ("/behind", 404)]
    {
        assert_eq!(site.walked(path), Err(status), "{path}");
    }
    assert!(matches!(find(&site.finder(), &[("PATH_INFO", "/round")]), Err(Failure::TooManyLinks { .. })));
}

/// Each row is what a web server sends for a script `/in/b.cgi` below its documents; `{}` is the root.
#[test]
fn what_web_servers_make_of_the_path_is_understood() {
    let site = Site::new();
    site.script("cgi/x y.cgi");
    site.script("cgi/q?.cgi");
    site.script("cgi/%41.cgi");
    type Row = (&'static str, &'static [(&'static str, &'static str)], &'static str, &'static str, &'static str);
    let rows: &[Row] = &[
        (
            "nginx, split",
            &[("SCRIPT_FILENAME", "{}/in/b.cgi"), ("SCRIPT_NAME", "/in/b.cgi"), ("PATH_INFO", "/x")],
            "in/b.cgi",
            "/in/b.cgi",
            "/x",
        ),
        (
            "nginx, not split",
            &[("SCRIPT_FILENAME", "{}/in/b.cgi/x/y"), ("SCRIPT_NAME", "/in/b.cgi/x/y")],
            "in/b.cgi",
            "/in/b.cgi",
            "/x/y",
        ),
        (
            "nginx, slash in root",
            &[("SCRIPT_FILENAME", "{}//in/b.cgi"), ("SCRIPT_NAME", "/in/b.cgi"), ("PATH_INFO", "")],
            "in/b.cgi",
            "/in/b.cgi",
            "",
        ),
        (
            "nginx, alias",
            &[("SCRIPT_FILENAME", "{}/in/b.cgi/x"), ("SCRIPT_NAME", "/else/x")],
            "in/b.cgi",
            "/else",
            "/x",
        ),
        ("document root", &[("DOCUMENT_ROOT", "{}"), ("SCRIPT_NAME", "/in/b.cgi/x")], "in/b.cgi", "/in/b.cgi", "/x"),
        (
            "document root, PATH_INFO",
            &[("DOCUMENT_ROOT", "{}/"), ("SCRIPT_NAME", "/in/b.cgi"), ("PATH_INFO", "/x")],
            "in/b.cgi",
            "/in/b.cgi",
            "/x",
        ),
        (
            "empty is unset",
            &[("SCRIPT_FILENAME", ""), ("DOCUMENT_ROOT", "{}"), ("SCRIPT_NAME", "/a.cgi")],
            "a.cgi",
            "/a.cgi",
            "",
        ),
        (
            "only PATH_INFO",
            &[("SCRIPT_FILENAME", ""), ("DOCUMENT_ROOT", "{}"), ("SCRIPT_NAME", ""), ("PATH_INFO", "/a.cgi/x")],
            "a.cgi",
            "/a.cgi",
            "/x",
        ),
        (
            "Apache",
            &[("SCRIPT_FILENAME", "proxy:fcgi://127.0.0.1:9000{}/a.cgi"), ("SCRIPT_NAME", "/a.cgi")],
            "a.cgi",
            "/a.cgi",
            "",
        ),
        (
            "Apache, IPv6 and query",
            &[
                ("SCRIPT_FILENAME", "proxy:fcgi://[::1]:9000{}/a.cgi/x?a/b?c"),
                ("SCRIPT_NAME", "/a.cgi/x"),
                ("QUERY_STRING", "c"),
            ],
            "",
            "",
            "",
        ),
        (
            "Apache, query",
            &[
                ("SCRIPT_FILENAME", "proxy:fcgi://[::1]:9000{}/a.cgi/x?a/b"),
                ("SCRIPT_NAME", "/a.cgi/x"),
                ("QUERY_STRING", "a/b"),
            ],
            "a.cgi",
            "/a.cgi",
            "/x",
        ),
        (
            "Apache, balancer",
            &[("SCRIPT_FILENAME", "proxy:balancer://pool{}/a.cgi"), ("SCRIPT_NAME", "/a.cgi")],
            "a.cgi",
            "/a.cgi",
            "",
        ),
        (
            "Apache, socket",
            &[("SCRIPT_FILENAME", "proxy:unix:/run/x.sock|fcgi://localhost{}/a.cgi"), ("SCRIPT_NAME", "/a.cgi")],
            "a.cgi",
            "/a.cgi",
            "",
        ),
        (
            "Apache, generic",
            &[("SCRIPT_FILENAME", "fcgi://localhost:9000{}/a.cgi"), ("SCRIPT_NAME", "/a.cgi")],
            "a.cgi",
            "/a.cgi",
            "",
        ),
        (
            "Apache, encoded",
            &[
                ("SCRIPT_FILENAME", "proxy:fcgi://h{}/x%20y.cgi/p%20q"),
                ("SCRIPT_NAME", "/x y.cgi"),
                ("PATH_INFO", "/p%20q"),
            ],
            "x y.cgi",
            "/x y.cgi",
            "/p q",
        ),
        (
            "Apache, as it is",
            &[("SCRIPT_FILENAME", "proxy:fcgi://h{}/%41.cgi"), ("SCRIPT_NAME", "/%41.cgi")],
            "%41.cgi",
            "/%41.cgi",
            "",
        ),
        (
            "a question mark in the name",
            &[("SCRIPT_FILENAME", "proxy:fcgi://h{}/q?.cgi"), ("SCRIPT_NAME", "/q?.cgi")],
            "q?.cgi",
            "/q?.cgi",
            "",
        ),
        (
            "OpenBSD, a folder",
            &[("SCRIPT_FILENAME", "{}/in"), ("SCRIPT_NAME", "/in"), ("PATH_INFO", "/b.cgi/x")],
            "in/b.cgi",
            "/in/b.cgi",
            "/x",
        ),
        (
            "OpenBSD, the root",
            &[("SCRIPT_FILENAME", "{}/"), ("SCRIPT_NAME", "/"), ("PATH_INFO", "/in/b.cgi")],
            "in/b.cgi",
            "/in/b.cgi",
            "",
        ),
        (
            "IIS",
            &[
                ("SERVER_SOFTWARE", "Microsoft-IIS/10.0"),
                ("SCRIPT_FILENAME", "{}/a.cgi"),
                ("SCRIPT_NAME", "/a.cgi"),
                ("PATH_INFO", "/a.cgi/x"),
            ],
            "a.cgi",
            "/a.cgi",
            "/x",
        ),
        (
            "IIS, nothing behind",
            &[
                ("SERVER_SOFTWARE", "Microsoft-IIS/10.0"),
                ("SCRIPT_FILENAME", "{}/a.cgi"),
                ("SCRIPT_NAME", "/a.cgi"),
                ("PATH_INFO", "/a.cgi"),
            ],
            "a.cgi",
            "/a.cgi",
            "",
        ),
        (
            "not IIS",
            &[
                ("SERVER_SOFTWARE", "nginx"),
                ("SCRIPT_FILENAME", "{}/a.cgi"),
                ("SCRIPT_NAME", "/a.cgi"),
                ("PATH_INFO", "/a.cgi/x"),
            ],
            "a.cgi",
            "/a.cgi",
            "/a.cgi/x",
        ),
        (
            "lighttpd at the root",
            &[
                ("DOCUMENT_ROOT", "{}"),
                ("SCRIPT_FILENAME", "{}/in/b.cgi/x"),
                ("SCRIPT_NAME", "/in/b.cgi/x"),
                ("PATH_INFO", ""),
            ],
            "in/b.cgi",
            "/in/b.cgi",
            "/x",
        ),
        (
            "%0a behind the script",
            &[("SCRIPT_FILENAME", "{}/a.cgi/\n.cgi"), ("SCRIPT_NAME", "/a.cgi/\n.cgi")],
            "a.cgi",
            "/a.cgi",
            "/\n.cgi",
        ),
    ];
    let root = site.text("cgi");
    for (what, sent, file, script_name, path_info) in rows {
        let sent: Vec<_> = sent.iter().map(|(name, value)| (*name, value.replace("{}", &root))).collect();
        let sent: Vec<_> = sent.iter().map(|(name, value)| (*name, &**value)).collect();
        let result = find(&site.finder(), &sent);
        if file.is_empty() {
            assert_eq!(result.unwrap().path_info, b"/x?a/b", "{what}: only the query itself is cut");
            continue;
        }
        let script = result.unwrap_or_else(|failure| panic!("{what}: {failure}"));
        assert_eq!(script.file, site.path("cgi").join(file), "{what}");
        assert_eq!(String::from_utf8(script.script_name).unwrap(), *script_name, "{what}");
        assert_eq!(String::from_utf8(script.path_info).unwrap(), *path_info, "{what}");
        assert_eq!(script.directory, script.file.parent().unwrap().components().collect::<PathBuf>(), "{what}");
    }
}

#[test]
fn what_a_web_server_names_and_may_not_be_run_is_403() {
    let site = Site::new();
    site.script("outside.cgi");
    site.script("cgi/x.cgi");
    site.mode("cgi/x.cgi", 0o644);
    let root = site.text("cgi");
    for (filename, status) in [
        ("{}/none.cgi", 403),
        ("{}/in/none/x", 403),
        ("{}/x.cgi", 403),
        ("{}/in", 403),
        ("{}", 403),
        ("{}/../outside.cgi", 400),
        ("{}/../cgi/a.cgi", 400),
        ("{}/in/../a.cgi", 400),
        ("{}/in/..\\a.cgi", 400),
        ("{}/in\\b.cgi", 400),
        ("{}-not/a.cgi", 403),
        ("/etc/passwd", 403),
        ("/bin/sh", 403),
        ("/dev/null", 403),
        ("/", 403),
        ("/none/none", 403),
        ("a.cgi", 403),
        ("{}/a.cgi/\0", 400),
        ("proxy:unix:/run/x.sock{}/a.cgi", 403),
        ("proxy:http://h{}/a.cgi", 403),
        ("proxy:fcgi://h", 403),
        ("proxy:fcgi://h{}/in%2fb.cgi", 400),
        ("proxy:fcgi://h{}/%2e%2e/outside.cgi", 400),
        ("proxy:fcgi://h{}/a.cg%69%00", 400),
    ] {
        let filename = filename.replace("{}", &root);
        let failure = find(&site.finder(), &[("SCRIPT_FILENAME", &filename)]).unwrap_err();
        assert_eq!(failure.status(), status, "{filename}: {failure}");
        assert!(!failure.mend().is_empty());
    }
    let outside = site.text("outside.cgi");
    let failure = find(&site.finder(), &[("SCRIPT_FILENAME", &outside)]).unwrap_err();
    assert!(failure.cause().contains(&root) && failure.cause().contains(&outside), "{failure}");
    let failure = find(&site.finder(), &[("DOCUMENT_ROOT", &root), ("SCRIPT_NAME", "a.cgi")]).unwrap_err();
    assert_eq!(failure.status(), 403);
    let long = format!("{root}{}", "/in".repeat(2000));
    assert!(find(&site.finder(), &[("SCRIPT_FILENAME", &long)]).is_err());
}

#[test]
fn a_path_that_leads_into_a_root_by_links_is_in_it() {
    let site = Site::new();
    site.link("www", "cgi");
    site.link("start", "cgi/in/b.cgi");
    site.link("out", "cgi/../outside.cgi");
    site.script("outside.cgi");
    let finder = site.finder();
    let file = |name: &str| find(&finder, &[("SCRIPT_FILENAME", &*site.text(name))]).map(|script| script.file);
    assert_eq!(file("www/a.cgi").unwrap(), site.path("cgi/a.cgi"));
    assert_eq!(file("www/in/b.cgi/x").unwrap(), site.path("cgi/in/b.cgi"));
    assert_eq!(file("start").unwrap(), site.path("cgi/in/b.cgi"));
    assert!(matches!(file("out"), Err(Failure::OutsideRoot { .. })));
    assert_eq!(file("www/none").unwrap_err().status(), 403);
    site.mode("cgi/in", 0o757);
    assert!(matches!(file("start"), Err(Failure::Writable { .. })), "folders are looked at up to the root");
    site.mode("cgi/in", 0o755);
    // A root that is named by a link is known by both names.
    let finder = Finder::new(&Config { roots: vec![site.path("www")], ..Config::default() }).unwrap();
    for name in ["www/a.cgi", "cgi/a.cgi"] {
        let script = find(&finder, &[("SCRIPT_FILENAME", &*site.text(name))]).unwrap();
        assert_eq!((script.file, script.script_filename), (site.path("cgi/a.cgi"), site.path(name)));
    }
    assert_eq!(find(&finder, &[("PATH_INFO", "/a.cgi")]).unwrap().script_filename, site.path("www/a.cgi"));
}

#[test]
fn a_cgi_scripts_own_file_is_not_asked_for_again() {
    let site = Site::new();
    let sent = [("SCRIPT_FILENAME", "/usr/lib/cgi-bin/bridge"), ("SCRIPT_NAME", "/bridge"), ("PATH_INFO", "/a.cgi/x")];
    let environ = Environ::new(sent.into_iter().collect());
    assert_eq!(site.finder().find(&environ).unwrap_err().status(), 403);
    let server = Server { gateway: "cgi", ..Server::default() };
    let script = site.finder().find(&environ.with_server(Arc::new(server))).unwrap();
    assert_eq!((&*script.script_name, &*script.path_info), (&b"/bridge/a.cgi"[..], &b"/x"[..]));
}

#[test]
fn path_translated_is_the_path_in_the_documents() {
    let site = Site::new();
    let root = site.text("cgi");
    let script = format!("{root}/a.cgi");
    let translated = |sent: &[(&str, &str)]| {
        let all = [&[("SCRIPT_FILENAME", &*script), ("SCRIPT_NAME", "/a.cgi")], sent].concat();
        find(&site.finder(), &all).unwrap().path_translated.map(|path| String::from_utf8(path).unwrap())
    };
    assert_eq!(translated(&[("DOCUMENT_ROOT", "/srv/www/"), ("PATH_INFO", "/x")]).unwrap(), "/srv/www/x");
    assert_eq!(translated(&[("DOCUMENT_ROOT", "/srv/www"), ("PATH_INFO", "")]), None);
    assert_eq!(translated(&[("PATH_INFO", "/x")]), None);
    assert_eq!(translated(&[("DOCUMENT_ROOT", "/srv/www"), ("PATH_INFO", "/x/../../etc")]), None);
    let sent = [("DOCUMENT_ROOT", "/srv/www"), ("PATH_INFO", "/x"), ("PATH_TRANSLATED", "/elsewhere/x")];
    assert_eq!(translated(&sent).unwrap(), "/elsewhere/x");
    assert_eq!(translated(&[("PATH_TRANSLATED", "/elsewhere")]), None);
}

#[test]
fn an_index_answers_for_its_folder_behind_a_slash() {
    let site = Site::new();
    site.script("cgi/in/index.cgi");
    site.folder("cgi/empty");
    let index = vec!["none.cgi".into(), "index.cgi".into()];
    let finder = Finder::new(&Config { index, ..site.config() }).unwrap();
    assert_eq!(split(&finder, &[("PATH_INFO", "/in/")]), found("/in/index.cgi", ""));
    assert_eq!(split(&finder, &[("PATH_INFO", "/in/b.cgi")]), found("/in/b.cgi", ""));
    assert_eq!(split(&finder, &[("PATH_INFO", "/empty/")]), Err(403));
    assert_eq!(split(&finder, &[("PATH_INFO", "/empty")]), Err(403));
    assert_eq!(split(&finder, &[("PATH_INFO", "/none/")]), Err(404));
    let sent = |method, query| {
        let sent =
            [("SCRIPT_NAME", "//evil/m \n"), ("PATH_INFO", "/in"), ("REQUEST_METHOD", method), ("QUERY_STRING", query)];
        let failure = find(&finder, &sent).unwrap_err();
        (failure.status(), failure.location().map(str::to_owned))
    };
    assert_eq!(sent("GET", ""), (301, Some("/evil/m%20%0A/in/".into())));
    assert_eq!(sent("POST", "a=b\r\nc"), (308, Some("/evil/m%20%0A/in/?a=b%0D%0Ac".into())));
    let root = site.text("cgi");
    let behind =
        |name: &str| split(&finder, &[("DOCUMENT_ROOT", &*root), ("SCRIPT_NAME", name), ("REQUEST_METHOD", "GET")]);
    assert_eq!(behind("/in/"), found("/in/index.cgi", ""));
    assert_eq!(behind("/in"), Err(301));
    assert_eq!(behind("/empty/"), Err(403));
    site.mode("cgi/in/index.cgi", 0o644);
    assert_eq!(split(&finder, &[("PATH_INFO", "/in/")]), Err(403));
}

#[test]
fn one_program_answers_for_all_paths() {
    let site = Site::new();
    site.script("prog");
    let config = Config { program: Some(site.path("prog")), ..Config::default() };
    let finder = Finder::new(&config).unwrap();
    for path in ["", "/", "/x/../y", "//"] {
        let script =
            find(&finder, &[("SCRIPT_NAME", "/m"), ("PATH_INFO", path), ("SCRIPT_FILENAME", "/bin/sh")]).unwrap();
        assert_eq!((script.file, script.script_filename), (site.path("prog"), site.path("prog")));
        assert_eq!((&*script.script_name, &*script.path_info), (&b"/m"[..], path.as_bytes()));
    }
    assert_eq!(split(&finder, &[("PATH_INFO", "/\0")]), Err(400));
    site.mode("prog", 0o757);
    assert_eq!(split(&finder, &[]), Err(403));
    fs::remove_file(site.path("prog")).unwrap();
    assert_eq!(split(&finder, &[]), Err(403));
    site.folder("prog");
    assert_eq!(split(&finder, &[]), Err(403));
}

#[test]
fn a_configuration_is_checked_at_the_start() {
    let site = Site::new();
    let make = |change: &dyn Fn(&mut Config)| {
        let mut config = site.config();
        change(&mut config);
        Finder::new(&config).map(drop)
    };
    assert!(make(&|_| {}).is_ok());
    assert!(matches!(make(&|config| config.roots.clear()), Err(ConfigError::Nothing)));
    assert!(matches!(make(&|config| config.program = Some("/bin/true".into())), Err(ConfigError::Both { .. })));
    for root in [site.path("none"), site.path("cgi/a.cgi")] {
        let result = make(&|config| config.roots.push(root.clone()));
        assert!(matches!(result, Err(ConfigError::Root { .. })), "{result:?}");
    }
    for program in [site.path("none"), site.path("cgi"), "/etc/passwd".into()] {
        let config = Config { program: Some(program), ..Config::default() };
        assert!(matches!(Finder::new(&config), Err(ConfigError::Program { .. })));
        let program = config.program.unwrap();
        let result = make(&|config| config.interpreters = vec![(".py".into(), program.clone())]);
        assert!(matches!(result, Err(ConfigError::Program { .. })), "{result:?}");
    }
    for ending in ["", "a/b", "..", "\0"] {
        let result = make(&|config| config.interpreters = vec![(ending.into(), "/bin/sh".into())]);
        assert!(matches!(result, Err(ConfigError::Ending(_))), "{result:?}");
        let result = make(&|config| config.index = vec![ending.into()]);
        assert!(matches!(result, Err(ConfigError::Index(_))), "{result:?}");
    }
    for (name, mode) in [("cgi", 0o757), ("cgi", 0o1777), ("", 0o757)] {
        let before = fs::metadata(site.path(name)).unwrap().permissions().mode();
        site.mode(name, mode);
        assert!(matches!(make(&|_| {}), Err(ConfigError::Writable { .. })), "{name} {mode:o}");
        site.mode(name, before & 0o7777);
    }
    site.mode("cgi/a.cgi", 0o757);
    let config = Config { program: Some(site.path("cgi/a.cgi")), ..Config::default() };
    assert!(matches!(Finder::new(&config), Err(ConfigError::Writable { .. })));
}

/// Parts that lead somewhere, and parts that try to.
fn part() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::sample::select(
            [
                "a.cgi", "in", "b.cgi", "link", "round", "out", "up", "slash", "..", ".", "", "etc", "passwd", "bin",
                "sh", "%2e%2e", "\\", "fifo", "\n",
            ]
            .map(|part| part.as_bytes().to_vec())
            .to_vec()
        ),
        prop::collection::vec(any::<u8>(), 0..6),
    ]
}

#[test]
fn whatever_the_path_a_script_lies_below_a_root() {
    let site = Site::new();
    site.script("outside.cgi");
    site.link("cgi/link", "in/b.cgi");
    site.link("cgi/round", "in/round");
    site.link("cgi/in/round", "..");
    site.link("cgi/out", "../outside.cgi");
    site.link("cgi/up", "..");
    site.link("cgi/in/slash", "/");
    rustix::fs::mknodat(CWD, site.path("cgi/fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    if as_root() {
        for name in ["cgi/link", "cgi/round", "cgi/in/round", "cgi/out", "cgi/up", "cgi/in/slash"] {
            lchown(site.path(name), NOBODY, NOBODY).unwrap();
        }
    }
    let finder = Finder::new(&Config { index: vec!["a.cgi".into()], ..site.config() }).unwrap();
    let root = site.path("cgi");
    let parts = || prop::collection::vec(part(), 0..7);
    let variables = (parts(), parts(), 0..6, prop::collection::vec(any::<u8>(), 0..20), any::<bool>());
    let count = std::cell::Cell::new(0);
    proptest!(ProptestConfig::with_cases(4000), |((path, named, how, uri, slash) in variables)| {
        let joined = |parts: &[Vec<u8>]| parts.iter().fold(Vec::new(), |path, part| [&path, &b"/"[..], part].concat());
        let (path, named) = (joined(&path), joined(&named));
        let root_bytes = root.as_os_str().as_bytes();
        let mut sent: Vec<(&str, Vec<u8>)> = vec![("PATH_INFO", path.clone()), ("REQUEST_URI", uri.clone())];
        match how {
            0 => sent.push(("SCRIPT_FILENAME", [root_bytes, &named].concat())),
            1 => sent.push(("SCRIPT_FILENAME", [b"proxy:fcgi://h", root_bytes, &named].concat())),
            2 => sent.extend([("DOCUMENT_ROOT", root_bytes.to_vec()), ("SCRIPT_NAME", named.clone())]),
            3 => sent.push(("SCRIPT_FILENAME", named.clone())),
            4 => sent.push(("SCRIPT_FILENAME", uri)),
            _ => {}
        }
        if slash {
            sent[0].1.push(b'/');
        }
        let environ = Environ::new(sent.iter().map(|(name, value)| (*name, value)).collect());
        match finder.find(&environ) {
            Ok(script) => {
                count.set(count.get() + 1);
                prop_assert!(script.file.starts_with(&root), "{:?}", script);
                prop_assert_eq!(&fs::canonicalize(&script.file).unwrap(), &script.file);
                prop_assert!(fs::metadata(&script.file).unwrap().is_file());
                prop_assert!(script.path_info.is_empty() || script.path_info.starts_with(b"/"));
                prop_assert!(!script.script_name.contains(&0) && !script.path_info.contains(&0));
                // However it is divided, the path stays the path.
                if how == 5 && !script.path_info.is_empty() {
                    prop_assert_eq!([&*script.script_name, &*script.path_info].concat(), environ.path_info());
                }
            }
            Err(failure) => {
                prop_assert!(matches!(failure.status(), 301 | 308 | 400 | 403 | 404 | 414), "{}", failure);
                prop_assert!(!failure.cause().is_empty() && !failure.mend().is_empty());
                prop_assert!(!failure.cause().contains(|character: char| character.is_control()), "{:?}", failure.cause());
            }
        }
    });
    assert!(count.get() > 100, "scripts were found, too: {}", count.get());
}
