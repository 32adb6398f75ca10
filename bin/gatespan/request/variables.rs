//! What is sent: method, path, header fields and body, and the variables that are made of them for FastCGI servers and CGI programs, as
//! nginx makes them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gatespan::address::{Address, Endpoint};
use gatespan::protocol::cgi::variable_name;
use gatespan::protocol::fastcgi::Role;
use percent_encoding::percent_decode;

use super::body::{self, Body};
use super::outcome::{Failure, Kind};
use super::{Arguments, To};

/// Who the request comes from, in SERVER_SOFTWARE and as User-Agent.
const SOFTWARE: &str = concat!("gatespan/", env!("CARGO_PKG_VERSION"));

/// An option `-H`: the field, and its value unless it is one to leave out.
#[derive(Debug, Clone)]
pub(super) struct FieldOption {
    name: Vec<u8>,
    value: Option<Vec<u8>>,
}

/// `Name: value`, `Name;` without a value, `Name:` to leave it out.
pub(super) fn parse_field(text: &str) -> Result<FieldOption, String> {
    let wrong = || format!("expected a header field such as \"X-Name: value\", got \"{}\"", text.escape_default());
    let (name, value) = match text.split_once(':') {
        Some((name, value)) => (name, Some(value.trim_matches([' ', '\t'])).filter(|value| !value.is_empty())),
        None => (text.strip_suffix(';').ok_or_else(wrong)?, Some("")),
    };
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let has_line = |value: &str| value.contains(['\r', '\n', '\0']);
    if name.is_empty() || !name.bytes().all(is_token) || value.is_some_and(has_line) {
        return Err(wrong());
    }
    Ok(FieldOption { name: name.into(), value: value.map(Into::into) })
}

/// A request, before it is known by which protocol it goes.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) method: Vec<u8>,
    /// Encoded, without the query. It begins with a slash, but for `*`.
    pub(super) path: Vec<u8>,
    /// Encoded, without the `?`.
    pub(super) query: Option<Vec<u8>>,
    pub(super) fields: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) body: Option<Body>,
    /// The file that a filter is given.
    pub(super) data: Option<Body>,
    /// What FastCGI servers and CGI programs are told.
    pub(super) variables: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Message {
    pub(super) fn new(arguments: &Arguments) -> Result<Self, Failure> {
        let options = &arguments.message;
        let (path, mut query) = target(arguments)?;
        let made = arguments.body.body()?;
        let mut made = made.filter(|_| arguments.fastcgi.values.is_none());
        if arguments.body.get
            && let Some((data, _)) = made.take()
        {
            let data = body::to_bytes(&data)?;
            query = Some(match query {
                Some(query) if !query.is_empty() => [&query[..], b"&", &data].concat(),
                _ => data,
            });
        }
        let usual: &[u8] = match (options.head, &made) {
            (true, _) => b"HEAD",
            (false, Some(_)) => b"POST",
            (false, None) => b"GET",
        };
        let method = options.request.as_ref().map_or(usual, |method| method.as_bytes()).to_vec();
        if method.is_empty() || !method.iter().all(|byte| byte.is_ascii_graphic()) {
            return Err(usage(format!("expected a method such as GET, got \"{}\"", method.escape_ascii())));
        }
        let mut message =
            Self { method, path, query, fields: Vec::new(), body: None, data: None, variables: Vec::new() };
        message.fields(arguments, made.as_ref().map(|(_, content_type)| content_type.as_str()))?;
        message.body = made.map(|(body, _)| body);
        message.data = arguments.fastcgi.filter_data.as_deref().map(Body::of_file).transpose()?;
        if arguments.fastcgi.values.is_none() {
            message.variables = message.all_variables(arguments)?;
        }
        Ok(message)
    }

    fn fields(&mut self, arguments: &Arguments, content_type: Option<&str>) -> Result<(), Failure> {
        let options = &arguments.message;
        let mut usual: Vec<(&str, Vec<u8>)> = vec![
            ("Host", host(&arguments.to).into_bytes()),
            ("User-Agent", options.user_agent.as_deref().unwrap_or(OsStr::new(SOFTWARE)).as_bytes().to_vec()),
            ("Accept", b"*/*".to_vec()),
        ];
        if let Some(user) = &options.user {
            usual.push(("Authorization", format!("Basic {}", STANDARD.encode(user.as_bytes())).into_bytes()));
        }
        if let Some(referer) = &options.referer {
            usual.push(("Referer", referer.as_bytes().to_vec()));
        }
        if !options.cookies.is_empty() {
            let cookies: Vec<_> = options.cookies.iter().map(|cookies| cookies.as_bytes()).collect();
            usual.push(("Cookie", cookies.join(&b"; "[..])));
        }
        if let Some(content_type) = content_type {
            usual.push(("Content-Type", content_type.into()));
        }
        // curl takes an empty one as none.
        usual.retain(|(name, value)| {
            let is_named = |field: &FieldOption| field.name.eq_ignore_ascii_case(name.as_bytes());
            !value.is_empty() && !options.headers.iter().any(is_named)
        });
        let given = options.headers.iter().filter_map(|field| Some((field.name.clone(), field.value.clone()?)));
        self.fields = usual.into_iter().map(|(name, value)| (name.into(), value)).chain(given).collect();
        match self.fields.iter().find(|(_, value)| value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0))) {
            Some((name, _)) => Err(usage(format!(
                "expected {} on one line, got one with a line end or NUL",
                String::from_utf8_lossy(name)
            ))),
            None => Ok(()),
        }
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        let found = self.fields.iter().rev().find(|(each, _)| each.eq_ignore_ascii_case(name.as_bytes()));
        found.map(|(_, value)| value.as_slice())
    }

    /// The variables, and what `--env-file` and `-p` make of them.
    fn all_variables(&self, arguments: &Arguments) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Failure> {
        let mut variables = self.usual_variables(arguments)?;
        for path in &arguments.fastcgi.env_files {
            for (line, assignment) in lines_of_env_file(&body::read(path)?) {
                if !assignment.contains(&b'=') || assignment.starts_with(b"=") {
                    return Err(Failure::local(format!(
                        "{}, line {line}: expected NAME=VALUE, got \"{}\"",
                        path.display(),
                        assignment.escape_ascii()
                    )));
                }
                assign(&mut variables, &assignment);
            }
        }
        for param in &arguments.fastcgi.params {
            if param.is_empty() || param.as_bytes().starts_with(b"=") {
                return Err(usage(format!("expected NAME=VALUE, NAME= or NAME for -p, got \"{}\"", param.display())));
            }
            assign(&mut variables, param.as_bytes());
        }
        Ok(variables)
    }

    /// As nginx makes them with its stock fastcgi_params.
    fn usual_variables(&self, arguments: &Arguments) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Failure> {
        let is_cgi = matches!(&arguments.to, To::Application(_));
        let role = Role::from(arguments.fastcgi.role);
        let root = arguments.fastcgi.root.as_deref().map(OsStr::as_bytes);
        let root = root.map(|root| if root == b"/" { b"" } else { root.strip_suffix(b"/").unwrap_or(root) });
        let decoded: Vec<u8> = percent_decode(&self.path).collect();
        let (script_name, path_info) = split(&decoded, arguments, is_cgi);
        let query = self.query.as_deref().unwrap_or_default();
        let uri = match &self.query {
            Some(query) => [&self.path[..], b"?", query].concat(),
            None => self.path.clone(),
        };
        let host = self.field("Host").unwrap_or(b"localhost");
        let (name, port) = name_and_port(host);
        let mut all = List(Vec::new());
        // FastCGI 6.3: an authorizer is not told what is the responder's to know.
        let is_told = role != Role::Authorizer;
        if is_told && !is_cgi {
            all.push("SCRIPT_FILENAME", [root.unwrap_or_default(), &script_name].concat());
        } else if let Some(root) = root.filter(|_| is_told && arguments.fastcgi.script.is_some()) {
            all.push("SCRIPT_FILENAME", [root, &script_name].concat());
        }
        all.push("QUERY_STRING", query);
        all.push("REQUEST_METHOD", &*self.method);
        if let Some(content_type) = self.field("Content-Type") {
            all.push("CONTENT_TYPE", content_type);
        }
        // What is said wins, so that it can be tried what a server makes of a false one.
        match (self.field("Content-Length"), &self.body) {
            _ if !is_told => {}
            (Some(given), _) => all.push("CONTENT_LENGTH", given),
            (None, Some(body)) => all.push("CONTENT_LENGTH", body.len().to_string()),
            (None, None) => {}
        }
        if is_told {
            all.push("SCRIPT_NAME", &*script_name);
        }
        all.push("REQUEST_URI", uri);
        all.push("DOCUMENT_URI", [&*script_name, &path_info].concat());
        if let Some(root) = root {
            all.push("DOCUMENT_ROOT", if root.is_empty() { b"/" } else { root });
        }
        all.push("SERVER_PROTOCOL", "HTTP/1.1");
        all.push("REQUEST_SCHEME", "http");
        all.push("GATEWAY_INTERFACE", "CGI/1.1");
        all.push("SERVER_SOFTWARE", SOFTWARE);
        all.push("REMOTE_ADDR", "127.0.0.1");
        all.push("SERVER_ADDR", "127.0.0.1");
        all.push("SERVER_PORT", port);
        all.push("SERVER_NAME", name);
        // PHP refuses to run without, where it was built so.
        all.push("REDIRECT_STATUS", "200");
        if is_told && !path_info.is_empty() {
            all.push("PATH_INFO", path_info);
        }
        if let Some(file) = &arguments.fastcgi.filter_data {
            let modified = file.metadata().and_then(|metadata| metadata.modified());
            let modified = modified.map_err(|error| Failure::local(format!("{}: {error}", file.display())))?;
            let seconds = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            all.push("FCGI_DATA_LAST_MOD", seconds.to_string());
            all.push("FCGI_DATA_LENGTH", self.data.as_ref().map_or(0, Body::len).to_string());
        }
        for (field, value) in &self.fields {
            let is_other = |name: &str| !field.eq_ignore_ascii_case(name.as_bytes());
            if is_other("Content-Type") && is_other("Content-Length") {
                let mut name = Vec::new();
                if !variable_name(field, &mut name) {
                    let field = String::from_utf8_lossy(field);
                    let variable = field.to_ascii_uppercase().replace('-', "_");
                    return Err(usage(format!(
                        "expected a header field that web servers make a variable of, got {field}, which they leave out: \
                         set the variable itself, with -p HTTP_{variable}=…"
                    )));
                }
                all.0.push((name, value.clone()));
            }
        }
        Ok(all.0)
    }
}

struct List(Vec<(Vec<u8>, Vec<u8>)>);

impl List {
    fn push(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.0.push((name.into(), value.as_ref().into()));
    }
}

fn usage(message: String) -> Failure {
    Failure::new(Kind::Usage, message)
}

/// The path and the query that are asked for.
fn target(arguments: &Arguments) -> Result<(Vec<u8>, Option<Vec<u8>>), Failure> {
    let behind = match &arguments.to {
        To::Application(target) => target.path.as_deref(),
        _ => None,
    };
    if let (Some(behind), Some(path)) = (behind, &arguments.path) {
        return Err(usage(format!(
            "expected one path, got \"{behind}\" behind the address and \"{}\"",
            path.display()
        )));
    }
    let script = arguments.fastcgi.script.as_deref().map(slashed).filter(|script| !script.is_empty());
    let text: &[u8] = match (&arguments.path, behind, &script) {
        (Some(path), _, _) => path.as_bytes(),
        (None, Some(behind), _) => behind.as_bytes(),
        (None, None, Some(script)) => script,
        (None, None, None) => b"/",
    };
    // What stands behind # is for whoever asks.
    let text = text.split(|byte| *byte == b'#').next().unwrap_or_default();
    let at = text.iter().position(|byte| *byte == b'?');
    let (path, query) = match at {
        Some(at) => (&text[..at], Some(text[at + 1..].to_vec())),
        None => (text, None),
    };
    let is_clean = |bytes: &[u8]| bytes.iter().all(|byte| !byte.is_ascii_control() && *byte != b' ');
    match path {
        b"" => Ok((b"/".to_vec(), query)),
        _ if !is_clean(text) => Err(usage(format!(
            "expected a path as in an address, with blanks and control characters encoded, got \"{}\"",
            text.escape_ascii()
        ))),
        b"*" => Ok((b"*".to_vec(), query)),
        [b'/', ..] => Ok((path.to_vec(), query)),
        _ => Err(usage(format!("expected a path that begins with /, got \"{}\"", text.escape_ascii()))),
    }
}

/// `--script` with a slash before it, unless it is empty or nothing but a slash.
fn slashed(script: &OsStr) -> Vec<u8> {
    match script.as_bytes() {
        b"" | b"/" => Vec::new(),
        script if script.starts_with(b"/") => script.to_vec(),
        script => [b"/", script].concat(),
    }
}

/// SCRIPT_NAME and PATH_INFO.
fn split(path: &[u8], arguments: &Arguments, is_cgi: bool) -> (Vec<u8>, Vec<u8>) {
    if let Some(script) = &arguments.fastcgi.script {
        let script = slashed(script);
        // A front controller that answers for other paths is told them by REQUEST_URI, as with nginx's try_files.
        let path_info = path.strip_prefix(&*script).filter(|rest| rest.is_empty() || rest.starts_with(b"/"));
        return (script.clone(), path_info.unwrap_or_default().to_vec());
    }
    // The script host looks for the script itself.
    if is_cgi {
        return (Vec::new(), path.to_vec());
    }
    let ending = b".php/";
    match path.windows(ending.len()).position(|window| window == ending) {
        Some(at) => {
            let (script, path_info) = path.split_at(at + ending.len() - 1);
            (script.to_vec(), path_info.to_vec())
        }
        // What nginx calls fastcgi_index.
        None if path.ends_with(b"/") && arguments.fastcgi.root.is_some() => ([path, b"index.php"].concat(), Vec::new()),
        None => (path.to_vec(), Vec::new()),
    }
}

/// The Host for the server. One on a Unix socket has no name.
fn host(to: &To) -> String {
    let (endpoint, usual_port) = match to {
        To::Application(target) => match &target.address {
            Address::Http(endpoint) => (endpoint, 80),
            Address::Https(endpoint) => (endpoint, 443),
            _ => return "localhost".into(),
        },
        // What listens there speaks no HTTP: its address is nobody's idea of a Host.
        _ => return "localhost".into(),
    };
    match endpoint {
        Endpoint::Tcp { host, port } => {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            if *port == usual_port { host } else { format!("{host}:{port}") }
        }
        _ => "localhost".into(),
    }
}

/// SERVER_NAME and SERVER_PORT.
fn name_and_port(host: &[u8]) -> (&[u8], &[u8]) {
    let at = host.iter().rposition(|byte| *byte == b':');
    match at.map(|at| (&host[..at], &host[at + 1..])) {
        Some((name, port)) if !port.is_empty() && port.iter().all(u8::is_ascii_digit) => (name, port),
        _ => (host, b"80"),
    }
}

/// `NAME=VALUE` takes the place of all that have the name, `NAME` takes them away.
fn assign(variables: &mut Vec<(Vec<u8>, Vec<u8>)>, assignment: &[u8]) {
    let at = assignment.iter().position(|byte| *byte == b'=');
    let name = &assignment[..at.unwrap_or(assignment.len())];
    let Some(at) = at else {
        variables.retain(|(each, _)| each != name);
        return;
    };
    let value = assignment[at + 1..].to_vec();
    match variables.iter().position(|(each, _)| each == name) {
        None => variables.push((name.into(), value)),
        Some(first) => {
            variables[first].1 = value;
            let mut index = 0;
            variables.retain(|(each, _)| {
                let keeps = each != name || index <= first;
                index += 1;
                keeps
            });
        }
    }
}

/// The assignments of a file of variables, with the numbers of their lines.
fn lines_of_env_file(bytes: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let has_nul = bytes.contains(&0);
    let lines = bytes.split(|byte| if has_nul { *byte == 0 } else { *byte == b'\n' }).enumerate();
    let line = |(index, line): (usize, &[u8])| {
        let line = if has_nul { line } else { line.strip_suffix(b"\r").unwrap_or(line) };
        let is_none = line.is_empty() || (!has_nul && line.starts_with(b"#"));
        (!is_none).then(|| (index + 1, line.to_vec()))
    };
    lines.filter_map(line).collect()
}

/// The folder that `--root` names, where it is one of CGI programs.
pub(super) fn root(arguments: &Arguments) -> Option<&Path> {
    arguments.fastcgi.root.as_ref().map(|root: &OsString| Path::new(root))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn message(words: &[&str]) -> Result<Message, Failure> {
        let words = ["gatespan", "request"].iter().chain(words);
        match crate::Cli::try_parse_from(words).expect("understood").command {
            crate::Command::Request(arguments) => Message::new(&arguments),
            _ => unreachable!("the command is request"),
        }
    }

    fn variable(message: &Message, name: &str) -> Option<String> {
        let found = message.variables.iter().rev().find(|(each, _)| each == name.as_bytes());
        found.map(|(_, value)| String::from_utf8(value.clone()).unwrap())
    }

    const TO: &str = "fastcgi:/a.sock";

    #[test]
    fn paths_are_split_as_nginx_splits_them() {
        for (words, [file, name, info, uri]) in [
            (&[TO][..], ["/", "/", "-", "/"]),
            (&[TO, "/ping"], ["/ping", "/ping", "-", "/ping"]),
            (&[TO, "/status?json#x"], ["/status", "/status", "-", "/status?json"]),
            (&[TO, "/a%20b.php/c%2Fd", "--root", "/srv/"], ["/srv/a b.php", "/a b.php", "/c/d", "/a%20b.php/c%2Fd"]),
            (&[TO, "/d/", "--root", "/srv"], ["/srv/d/index.php", "/d/index.php", "-", "/d/"]),
            (&[TO, "/", "--root", "/"], ["/index.php", "/index.php", "-", "/"]),
            (&[TO, "/a/b", "--script", ""], ["", "", "/a/b", "/a/b"]),
            (&[TO, "/a/b", "--script", "/"], ["", "", "/a/b", "/a/b"]),
            (&[TO, "/a/b", "--script", "/a"], ["/a", "/a", "/b", "/a/b"]),
            (&[TO, "/ab", "--script", "/a"], ["/a", "/a", "-", "/ab"]),
            (&[TO, "/x?y", "--script", "i.php", "--root", "/srv"], ["/srv/i.php", "/i.php", "-", "/x?y"]),
            (&[TO, "--script", "/i.php", "--root", "/srv"], ["/srv/i.php", "/i.php", "-", "/i.php"]),
        ] {
            let message = message(words).unwrap();
            let names = ["SCRIPT_FILENAME", "SCRIPT_NAME", "PATH_INFO", "REQUEST_URI"];
            let found = names.map(|name| variable(&message, name).unwrap_or("-".into()));
            assert_eq!(found, [file, name, info, uri], "{words:?}");
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for path in ["ping", "http://h/", "/a b", "/a\n"] {
            assert_eq!(message(&[TO, path]).unwrap_err().kind, Kind::Usage, "{path}");
        }
        assert_eq!(message(&["http://h/a", "/b"]).unwrap_err().kind, Kind::Usage);
    }

    #[test]
    fn header_fields_become_variables_and_may_be_left_out() {
        let words = [TO, "-H", "X-A: 1", "-H", "X-A:2", "-H", "Accept:", "-H", "X-Empty;", "-H", "Host: h:81"];
        let message = message(&words).unwrap();
        let all: Vec<_> = message.variables.iter().filter(|(name, _)| name == b"HTTP_X_A").collect();
        assert_eq!(all.len(), 2);
        assert_eq!(variable(&message, "HTTP_ACCEPT"), None);
        assert_eq!(variable(&message, "HTTP_X_EMPTY").as_deref(), Some(""));
        assert_eq!(variable(&message, "SERVER_NAME").as_deref(), Some("h"));
        assert_eq!(variable(&message, "SERVER_PORT").as_deref(), Some("81"));
        assert_eq!(variable(&message, "HTTP_USER_AGENT").as_deref(), Some(SOFTWARE));
        for wrong in ["X", ": v", "X Y: v", "X: a\nb", ""] {
            assert!(parse_field(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn data_is_a_body_or_a_query() {
        let posted = message(&[TO, "/f", "-d", "a=1", "-d", "b=2", "--data-urlencode", "c=x y"]).unwrap();
        assert_eq!(posted.method, b"POST");
        assert_eq!(variable(&posted, "CONTENT_LENGTH").as_deref(), Some("15"));
        assert_eq!(variable(&posted, "CONTENT_TYPE").as_deref(), Some("application/x-www-form-urlencoded"));
        assert_eq!(body::to_bytes(&posted.body.unwrap()).unwrap(), b"a=1&b=2&c=x%20y");
        let asked = message(&[TO, "/f?z", "-G", "-d", "a=1"]).unwrap();
        assert_eq!((&asked.method[..], asked.body.is_none()), (&b"GET"[..], true));
        assert_eq!(variable(&asked, "QUERY_STRING").as_deref(), Some("z&a=1"));
        assert_eq!(variable(&asked, "CONTENT_LENGTH"), None);
        let put = message(&[TO, "-X", "PUT", "--data-raw", "@x", "-H", "Content-Type: text/plain"]).unwrap();
        assert_eq!((&put.method[..], variable(&put, "CONTENT_TYPE").as_deref()), (&b"PUT"[..], Some("text/plain")));
    }

    #[test]
    fn a_variable_that_is_set_takes_the_place_of_all_others() {
        let message =
            message(&[TO, "-H", "X: 1", "-H", "X: 2", "-p", "HTTP_X=3", "-p", "SERVER_NAME", "-p", "E="]).unwrap();
        let all: Vec<_> = message.variables.iter().filter(|(name, _)| name == b"HTTP_X").collect();
        assert_eq!(all, [&(b"HTTP_X".to_vec(), b"3".to_vec())]);
        assert_eq!((variable(&message, "SERVER_NAME"), variable(&message, "E").as_deref()), (None, Some("")));
    }

    #[test]
    fn a_file_of_variables_has_one_on_each_line_or_between_nuls() {
        let lines = |bytes: &[u8]| -> Vec<(usize, String)> {
            let text = |(line, text): (usize, Vec<u8>)| (line, String::from_utf8(text).unwrap());
            lines_of_env_file(bytes).into_iter().map(text).collect()
        };
        assert_eq!(lines(b"A=1\r\n\n# no\nB=x=y"), [(1, "A=1".into()), (4, "B=x=y".into())]);
        assert_eq!(lines(b"A=1\n2\0#B=3\0"), [(1, "A=1\n2".into()), (2, "#B=3".into())]);
    }
}
