//! The tool's command line, from outside: help, version, exit codes, completions and manual pages.
#![cfg(feature = "cli")]

use std::process::{Command, Output, Stdio};

const COMMANDS: [&str; 8] = ["bridge", "tap", "demo", "request", "convert", "decode", "completions", "man"];

fn gatespan(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gatespan")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Standard output of a run that has to go well.
fn output(arguments: &[&str]) -> String {
    let output = gatespan(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{arguments:?}: {} {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_names_every_command_and_has_examples() {
    let help = output(&["--help"]);
    for expected in COMMANDS.into_iter().chain(["Examples:", "Exit codes:", "--log-format", "Usage: gatespan"]) {
        assert!(help.contains(expected), "{expected} is not in {help}");
    }
    assert_eq!(output(&["help"]).lines().next(), help.lines().next());
}

#[test]
fn every_command_explains_itself_with_examples_that_the_parser_takes() {
    for command in COMMANDS {
        let help = output(&[command, "--help"]);
        assert!(help.contains(&format!("Usage: gatespan {command}")), "{help}");
        let (_, examples) = help.split_once("Examples:\n").unwrap();
        let mut count = 0;
        for example in examples.lines().filter_map(|line| line.trim().strip_prefix("gatespan ")) {
            let words = example.split("   ").next().unwrap().split(['|', '>']).next().unwrap().split_whitespace();
            let words: Vec<_> = words.chain(["--help"]).collect();
            output(&words);
            count += 1;
        }
        assert!(count >= 2, "{help}");
        assert!(gatespan(&[command, "-h"]).status.success());
    }
}

#[test]
fn the_demos_help_is_this() {
    let help = output(&["demo", "-h"]);
    let expected = "\
Show one application behind HTTP, FastCGI and CGI side by side, in a browser

Usage: gatespan demo [OPTIONS]
";
    assert!(help.starts_with(expected), "{help}");
    for option in ["--listen <ADDRESS>", "--open", "--no-open", "curl -N http://127.0.0.1:8080/fastcgi/events"] {
        assert!(help.contains(option), "{option} is not in {help}");
    }
}

#[test]
fn the_version_is_the_packages() {
    assert_eq!(output(&["--version"]), concat!("gatespan ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn what_is_not_understood_is_exit_code_2_on_standard_error() {
    for arguments in [
        &[][..],
        &["no-such-command"],
        &["demo", "--no-such-option"],
        &["demo", "--listen", "http://192.0.2.1:80"],
        &["demo", "--listen", "8080"],
        &["completions", "no-such-shell"],
        &["man", "demo", "--folder", "/"],
        &["man", "-v", "-q"],
    ] {
        let output = gatespan(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn what_fails_is_exit_code_1_with_its_causes_on_standard_error() {
    let missing = gatespan(&["man", "--folder", "/no/such/folder"]);
    assert_eq!(missing.status.code(), Some(1));
    let message = String::from_utf8(missing.stderr).unwrap();
    assert!(
        message.starts_with("gatespan: /no/such/folder: the manual pages could not be written there: "),
        "{message}"
    );
    assert!(message.contains("No such file or directory"), "{message}");
    let unknown = gatespan(&["man", "nothing"]);
    assert_eq!(unknown.status.code(), Some(1));
    let message = String::from_utf8(unknown.stderr).unwrap();
    assert!(
        message.contains("expected one of the commands bridge, tap, demo, request, convert, decode, completions, man"),
        "{message}"
    );

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let output = gatespan(&["demo", "--listen", &format!("http://{taken}")]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with(&format!("gatespan: {taken}: could not listen there: ")), "{message}");
}

/// A web server that makes arguments of a query (RFC 3875 4.4) would let any client choose the command.
#[test]
fn cve_2012_1823_no_argument_is_read_from_a_web_server() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["man", "--folder", folder.path().to_str().unwrap()][..], &["--help"], &["demo"], &[]] {
        let output = Command::new(env!("CARGO_BIN_EXE_gatespan"))
            .args(arguments)
            .env("GATEWAY_INTERFACE", "CGI/1.1")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let answer = String::from_utf8(output.stdout).unwrap();
        assert!(answer.starts_with("Status: 500 Internal Server Error\r\nContent-Type: text/plain"), "{answer}");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("GATEWAY_INTERFACE"), "{arguments:?}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    for arguments in [&["--help"][..], &["man"], &["completions", "bash"], &["demo", "--listen", "http://127.0.0.1:0"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatespan"));
        let output = command.args(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn completions_are_made_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = output(&["completions", shell]);
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    let script = output(&["completions", "bash"]);
    let mut bash = Command::new("bash").args(["-n", "/dev/stdin"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut bash.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success(), "bash does not understand the script");
}

#[test]
fn manual_pages_are_made_one_or_all() {
    assert!(output(&["man"]).contains(".TH gatespan 1"));
    for command in COMMANDS {
        let page = output(&["man", command]);
        assert!(page.contains(&format!(".TH gatespan-{command} 1")), "{page}");
        assert!(page.contains("Examples:"), "{page}");
    }
    let folder = tempfile::tempdir().unwrap();
    output(&["man", "--folder", folder.path().to_str().unwrap()]);
    for command in COMMANDS {
        assert!(folder.path().join(format!("gatespan-{command}.1")).is_file(), "{command}");
    }
    assert!(folder.path().join("gatespan.1").is_file());
}
