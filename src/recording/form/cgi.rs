//! The form `cgi`: for each exchange a folder with what a CGI program gets and gives, and a script that runs the program with it.
//!
//! | file | |
//! | --- | --- |
//! | `environment` | the variables as `NAME=VALUE`, a NUL behind each, as in `/proc/PID/environ` |
//! | `input` | what the program reads |
//! | `output`, `errors` | what it wrote |
//! | `status` | its exit status in digits; missing where it was not seen to end |
//! | `role`, `data` | for roles other than Responder: its name, and a Filter's file |
//! | `run` | a shell script: `./run [PROGRAM]` |

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::ExchangeReadError;
use super::curl::quote;
use crate::protocol::Pairs;
use crate::protocol::cgi::{Excerpt, is_environment_name, is_environment_value, separator};
use crate::protocol::fastcgi::{EndRequest, ProtocolStatus, RequestId, Role};
use crate::recording::{ConnectionId, Exchange, MAX_PARAMS_LEN, ReadError, Spool, Spooled};

/// The variables as a process's environment can hold them, and what it can't. Of a name that is repeated, the values of a header field are
/// joined and of any other the last counts, as a server does it.
pub fn environment(params: &Pairs) -> (Pairs, Vec<String>) {
    let (mut held, mut notes): (Vec<(&[u8], Vec<u8>)>, _) = (Vec::new(), Vec::new());
    let mut places: HashMap<&[u8], usize> = HashMap::new();
    for (name, value) in params.iter() {
        if !is_environment_name(name) || !is_environment_value(value) {
            notes.push(format!("the variable {} can't be in an environment", Excerpt::new(name)));
            continue;
        }
        let place = *places.entry(name).or_insert(held.len());
        match held.get_mut(place) {
            None => held.push((name, value.to_vec())),
            Some((_, before)) if name.starts_with(b"HTTP_") => {
                before.extend_from_slice(separator(name));
                before.extend_from_slice(value);
            }
            Some((_, before)) => *before = value.to_vec(),
        }
    }
    (held.into_iter().collect(), notes)
}

/// A shell script that runs a program with exactly this environment. It stands in the folder that has the input.
pub fn run_script(environment: &Pairs) -> Vec<u8> {
    let mut script = b"#!/bin/sh
# Runs a CGI program as it was run here: with these variables and no others, and with the input that lies beside this script.
# Usage: run [PROGRAM]
folder=$(cd -- \"$(dirname -- \"$0\")\" && pwd) || exit
program=$1
if [ -z \"$program\" ]; then program="
        .to_vec();
    quote(program(environment), &mut script);
    script.extend(
        b"; fi
case $program in
    '') echo \"run: expected the program as argument, since SCRIPT_FILENAME is not set\" >&2; exit 2 ;;
    *=*) echo \"run: expected a path without \\\"=\\\", got $program\" >&2; exit 2 ;;
    /*) ;;
    *) program=$PWD/$program ;;
esac
cd -- \"$(dirname -- \"$program\")\" || exit
exec env -i --",
    );
    for (name, value) in environment.iter() {
        script.extend(b" \\\n    ");
        quote(&[name, b"=", value].concat(), &mut script);
    }
    script.extend(b" \\\n    \"$program\" < \"$folder/input\"\n");
    script
}

/// The program's file. Apache names it behind the address that it was to be reached at.
fn program(environment: &Pairs) -> &[u8] {
    let named = environment.last(b"SCRIPT_FILENAME").unwrap_or_default();
    let Some(rest) = named.strip_prefix(b"proxy:") else { return named };
    let after_scheme = rest.windows(3).position(|three| three == b"://").map_or(rest, |at| &rest[at + 3..]);
    let start = after_scheme.iter().position(|byte| *byte == b'/').unwrap_or(after_scheme.len());
    let path = &after_scheme[start..];
    path.split(|byte| *byte == b'?').next().unwrap_or_default()
}

/// Writes an exchange into a folder, which is made. Gives back what of it the form can't hold.
///
/// # Errors
///
/// When the folder is there already, or can't be written.
pub fn write(exchange: &Exchange, folder: &Path) -> io::Result<Vec<String>> {
    let (environment, notes) = environment(&exchange.params);
    fs::create_dir(folder)?;
    let mut bytes = Vec::new();
    for (name, value) in environment.iter() {
        bytes.extend_from_slice(name);
        bytes.push(b'=');
        bytes.extend_from_slice(value);
        bytes.push(0);
    }
    fs::write(folder.join("environment"), bytes)?;
    for (name, body) in [("input", &exchange.stdin), ("output", &exchange.stdout), ("errors", &exchange.stderr)] {
        put(&folder.join(name), body)?;
    }
    if let Some(end) = exchange.end {
        fs::write(folder.join("status"), format!("{}\n", end.application_status))?;
    }
    if exchange.role != Role::Responder {
        let name = match exchange.role {
            Role::Authorizer => "AUTHORIZER\n".to_owned(),
            Role::Filter => "FILTER\n".to_owned(),
            other => format!("{}\n", u16::from(other)),
        };
        fs::write(folder.join("role"), name)?;
    }
    if exchange.role == Role::Filter || !exchange.data.is_empty() {
        put(&folder.join("data"), &exchange.data)?;
    }
    let mut script = OpenOptions::new().write(true).create_new(true).mode(0o755).open(folder.join("run"))?;
    script.write_all(&run_script(&environment))?;
    Ok(notes)
}

fn put(path: &Path, body: &Spooled) -> io::Result<()> {
    io::copy(&mut body.reader(), &mut File::create_new(path)?)?;
    Ok(())
}

/// Whether a folder holds an exchange.
pub fn is_exchange(folder: &Path) -> bool {
    folder.join("environment").is_file()
}

/// Reads an exchange from its folder. Files other than `environment` may be missing, and then are empty.
///
/// # Errors
///
/// When a file can't be read, or is not what it should be.
pub fn read(folder: &Path, connection: ConnectionId, spool: &Spool) -> Result<Exchange, ExchangeReadError> {
    let mut exchange = Exchange::new(spool, connection, RequestId(1));
    let mut environment = Vec::new();
    // One byte more shows that there is more.
    File::open(folder.join("environment"))?.take(MAX_PARAMS_LEN as u64 + 1).read_to_end(&mut environment)?;
    if environment.len() > MAX_PARAMS_LEN {
        return Err(wrong(0, format!("at most {MAX_PARAMS_LEN} bytes in environment"), "more"));
    }
    let mut offset = 0;
    for variable in environment.split_inclusive(|byte| *byte == 0) {
        let text = variable.strip_suffix(b"\0").unwrap_or(variable);
        match text.iter().position(|byte| *byte == b'=') {
            Some(at) if at > 0 => exchange.params.push(&text[..at], &text[at + 1..]),
            _ => return Err(wrong(offset, "NAME=VALUE and a NUL in environment", Excerpt::new(text).to_string())),
        }
        offset += variable.len() as u64;
    }
    for (name, body) in [
        ("input", &mut exchange.stdin),
        ("output", &mut exchange.stdout),
        ("errors", &mut exchange.stderr),
        ("data", &mut exchange.data),
    ] {
        let mut file = match File::open(folder.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let mut bytes = vec![0; 0x1_0000];
        loop {
            let len = file.read(&mut bytes)?;
            if len == 0 {
                break;
            }
            body.append(&bytes[..len])?;
        }
    }
    if let Some(status) = line(folder, "status")? {
        let application_status = status.parse().map_err(|_| wrong(0, "a number in status", &status))?;
        exchange.end = Some(EndRequest { application_status, protocol_status: ProtocolStatus::RequestComplete });
    }
    if let Some(role) = line(folder, "role")? {
        exchange.role = match &*role {
            "AUTHORIZER" => Role::Authorizer,
            "FILTER" => Role::Filter,
            number => {
                number.parse::<u16>().map_err(|_| wrong(0, "AUTHORIZER, FILTER or a number in role", &role))?.into()
            }
        };
    }
    Ok(exchange)
}

/// The one line of a small file; `None` where there is no such file.
fn line(folder: &Path, name: &str) -> io::Result<Option<String>> {
    let mut text = Vec::new();
    match File::open(folder.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?.take(64).read_to_end(&mut text)?,
    };
    Ok(Some(String::from_utf8_lossy(&text).trim_end_matches('\n').to_owned()))
}

fn wrong(offset: u64, expected: impl Into<String>, got: impl Into<String>) -> ExchangeReadError {
    ReadError { offset, expected: expected.into(), got: got.into() }.into()
}
