//! What a script is told: its environment and, by option, its arguments.
//!
//! An environment is built from nothing, in this order, of which the later wins:
//!
//! 1. variables of this process, those on [`Config::inherit`] and [`Config::pass_environment`] only;
//! 2. what the web server or the gateway sent, its own additions such as GIT_PROJECT_ROOT too, without what steers loaders, shells and
//!    interpreters ([`steers`]);
//! 3. [`Config::environment`], which is the administrator's word;
//! 4. what is known only here: the variables of the script that was found, and the length of the body that it will read. An administrator who tries to
//!    set one of them is told so at the start.
//!
//! REDIRECT_STATUS is 200 unless it is set: without it `php-cgi` refuses to run.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use percent_encoding::percent_decode;
use rustix::process::{Resource, getrlimit};

use super::config::{Config, ConfigError};
use super::failure::Failure;
use super::script::Script;
pub use super::steering::steers;
use crate::application::Environ;
use crate::protocol::cgi::{Excerpt, is_environment_name, is_environment_value, is_forbidden, names};

/// The longest variable that the kernel passes on, name, `=`, value and NUL together: `MAX_ARG_STRLEN`, 32 pages.
pub const MAX_VARIABLE_LEN: usize = 128 << 10;

/// SERVER_SOFTWARE where the request came without.
const SERVER_SOFTWARE: &str = concat!("gatespan/", env!("CARGO_PKG_VERSION"));

/// Where programs are looked for if this process has no PATH to say so.
pub const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What of the kernel's room is left for the names of script, interpreter and arguments, and for what the kernel adds.
const RESERVED_LEN: usize = 32 << 10;

/// What the words of an ISINDEX query may come to, in bytes. A longer query becomes no arguments.
const MAX_ARGUMENTS_LEN: usize = 8 << 10;

/// What all scripts' environments have in common, and what they leave out: made once of a [`Config`].
#[derive(Debug, Clone)]
pub struct Rules {
    inherited: Vec<(Vec<u8>, Vec<u8>)>,
    set: Vec<(Vec<u8>, Vec<u8>)>,
    passed: Patterns,
    authorization: bool,
    isindex: bool,
    max_len: usize,
}

impl Rules {
    /// Reads this process's environment, once.
    ///
    /// # Errors
    ///
    /// For a variable that can't be set: [`ConfigError::Variable`] and [`ConfigError::Fixed`].
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        Self::of(config, std::env::vars_os())
    }

    fn of(config: &Config, own: impl Iterator<Item = (OsString, OsString)>) -> Result<Self, ConfigError> {
        for (name, value) in &config.environment {
            check_set(name.as_bytes(), value.as_bytes()).map_err(|refused| match refused {
                Some(why) => ConfigError::Fixed { name: name.clone(), why },
                None => ConfigError::Variable(name.clone()),
            })?;
        }
        let inherited = Patterns::new(&config.inherit)?;
        let passed = Patterns::new(&config.pass_environment)?;
        let own = own.map(|(name, value)| (name.into_vec(), value.into_vec()));
        let mut inherited: Vec<_> =
            own.filter(|(name, _)| (inherited.fit(name) || passed.fit(name)) && check_set(name, b"").is_ok()).collect();
        if !inherited.iter().any(|(name, _)| name == b"PATH") {
            inherited.push((b"PATH".into(), DEFAULT_PATH.into()));
        }
        let set = config.environment.iter();
        Ok(Self {
            inherited,
            set: set.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect(),
            passed,
            authorization: config.authorization,
            isindex: config.isindex,
            max_len: max_len(getrlimit(Resource::Stack).current),
        })
    }

    /// Whether a variable that was sent goes on to the script.
    fn admit(&self, name: &[u8]) -> bool {
        // Nearly all variables are decided by this.
        if name.starts_with(b"HTTP_") {
            return match name {
                b"HTTP_AUTHORIZATION" | b"HTTP_PROXY_AUTHORIZATION" => self.authorization,
                // The transfer coding ends at the server: what the script reads has none.
                b"HTTP_TRANSFER_ENCODING" => false,
                name => !is_forbidden(name),
            };
        }
        !is_forbidden(name) && (!steers(name) || self.passed.fit(name))
    }
}

/// The whole environment of a script, as `NAME=value`. `content_length` is the length of the body that the script will read, where it is
/// known; CONTENT_LENGTH is unset where it is not.
///
/// # Errors
///
/// For a variable that no environment can hold, and for more than the system passes on.
pub fn build(
    environ: &Environ,
    script: &Script,
    rules: &Rules,
    content_length: Option<u64>,
) -> Result<Vec<CString>, Failure> {
    let pairs = environ.variables().pairs();
    let mut made = Environment::with_capacity(pairs.len() + rules.inherited.len() + rules.set.len() + 8);
    for (name, value) in &rules.inherited {
        made.set(name, value);
    }
    for (name, value) in pairs.iter().filter(|(name, _)| rules.admit(name)) {
        if !is_environment_name(name) {
            return Err(Failure::BadVariable { name: Excerpt::new(name), fault: "which is empty or holds = or NUL" });
        }
        if !is_environment_value(value) {
            return Err(Failure::BadVariable { name: Excerpt::new(name), fault: "whose value holds NUL" });
        }
        if made.set(name, value) && name.starts_with(b"HTTP_") {
            // Sent more than once: the values joined (RFC 3875 4.1.18).
            made.set(name, environ.get(name).unwrap_or(value));
        }
    }
    for (name, value) in &rules.set {
        made.set(name, value);
    }
    made.set(names::GATEWAY_INTERFACE.as_bytes(), "CGI/1.1".as_bytes());
    made.set(names::SCRIPT_NAME.as_bytes(), &script.script_name);
    made.set(names::SCRIPT_FILENAME.as_bytes(), script.script_filename.as_os_str().as_bytes());
    let path_info = Some(&*script.path_info).filter(|path_info| !path_info.is_empty());
    made.set_or_remove(names::PATH_INFO, path_info);
    made.set_or_remove(names::PATH_TRANSLATED, script.path_translated.as_deref());
    if let Some(document_root) = &script.document_root {
        made.set_if_empty(names::DOCUMENT_ROOT, document_root.as_os_str().as_bytes());
    }
    let content_length = content_length.map(|length| length.to_string());
    made.set_or_remove(names::CONTENT_LENGTH, content_length.as_ref().map(String::as_bytes));
    // Empty is unset (4.1), and programs tell an empty type from none all the same.
    if made.get(names::CONTENT_TYPE).is_some_and(<[u8]>::is_empty) {
        made.set_or_remove(names::CONTENT_TYPE, None);
    }
    // 4.1.7: it is set even where there is no query.
    if made.get(names::QUERY_STRING).is_none() {
        made.set(names::QUERY_STRING.as_bytes(), b"");
    }
    made.set_if_empty(names::SERVER_SOFTWARE, SERVER_SOFTWARE.as_bytes());
    made.set_if_empty("REDIRECT_STATUS", b"200");
    made.finish(script, rules.max_len)
}

/// The arguments that the query becomes (RFC 3875 4.4), behind those of the [`Script`]: none unless [`Config::isindex`] is set, the method is GET or HEAD
/// and the query has no `=`.
///
/// None, too, where a word can't be an argument, or begins with a hyphen or a character that other systems and programs fold into
/// one: programs take such words for options (CVE-2012-1823, CVE-2024-4577).
pub fn arguments(environ: &Environ, rules: &Rules) -> Vec<CString> {
    let query = environ.query_string();
    if !rules.isindex || !matches!(environ.method(), b"GET" | b"HEAD") || query.is_empty() {
        return Vec::new();
    }
    if query.contains(&b'=') || query.len() > MAX_ARGUMENTS_LEN {
        return Vec::new();
    }
    // "If the server cannot create any part of the argument list, then the server MUST NOT generate any."
    let words: Option<Vec<CString>> = query.split(|byte| *byte == b'+').map(argument).collect();
    words.unwrap_or_default()
}

/// Names, and beginnings of names.
#[derive(Debug, Clone, Default)]
struct Patterns {
    names: Vec<Vec<u8>>,
    prefixes: Vec<Vec<u8>>,
}

impl Patterns {
    fn new(patterns: &[OsString]) -> Result<Self, ConfigError> {
        let mut made = Self::default();
        for pattern in patterns {
            let bytes = pattern.as_bytes();
            match bytes.strip_suffix(b"*") {
                Some(prefix) if is_environment_value(prefix) && !prefix.contains(&b'=') => {
                    made.prefixes.push(prefix.into());
                }
                None if is_environment_name(bytes) => made.names.push(bytes.into()),
                _ => return Err(ConfigError::Variable(pattern.clone())),
            }
        }
        Ok(made)
    }

    fn fit(&self, name: &[u8]) -> bool {
        self.names.iter().any(|other| *other == name) || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }
}

/// Variables in order, no name twice.
struct Environment<'a> {
    variables: Vec<(&'a [u8], Option<&'a [u8]>)>,
    places: HashMap<&'a [u8], usize>,
}

impl<'a> Environment<'a> {
    fn with_capacity(capacity: usize) -> Self {
        Self { variables: Vec::with_capacity(capacity), places: HashMap::with_capacity(capacity) }
    }

    /// Whether the name was there before.
    fn set(&mut self, name: &'a [u8], value: &'a [u8]) -> bool {
        match self.places.entry(name) {
            std::collections::hash_map::Entry::Occupied(place) => {
                self.variables[*place.get()].1 = Some(value);
                true
            }
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(self.variables.len());
                self.variables.push((name, Some(value)));
                false
            }
        }
    }

    fn get(&self, name: &'static str) -> Option<&'a [u8]> {
        self.places.get(name.as_bytes()).and_then(|place| self.variables[*place].1)
    }

    fn set_or_remove(&mut self, name: &'static str, value: Option<&'a [u8]>) {
        match (value, self.places.get(name.as_bytes())) {
            (Some(value), _) => _ = self.set(name.as_bytes(), value),
            (None, Some(place)) => self.variables[*place].1 = None,
            (None, None) => {}
        }
    }

    fn set_if_empty(&mut self, name: &'static str, value: &'a [u8]) {
        if self.get(name).is_none_or(<[u8]>::is_empty) {
            self.set(name.as_bytes(), value);
        }
    }

    fn finish(self, script: &Script, max_len: usize) -> Result<Vec<CString>, Failure> {
        // The kernel counts each string with its NUL, and the pointer to it.
        const POINTER: usize = size_of::<usize>();
        let mut total: usize = script.arguments.iter().map(|each| each.as_bytes_with_nul().len() + POINTER).sum();
        let mut made = Vec::with_capacity(self.variables.len());
        for (name, value) in self.variables {
            let Some(value) = value else { continue };
            let len = name.len() + 1 + value.len() + 1;
            if len > MAX_VARIABLE_LEN {
                let name = Some(Excerpt::new(name));
                return Err(Failure::TooManyVariables { name, len, limit: MAX_VARIABLE_LEN });
            }
            total += len + POINTER;
            let mut variable = Vec::with_capacity(len);
            variable.extend_from_slice(name);
            variable.push(b'=');
            variable.extend_from_slice(value);
            match CString::new(variable) {
                Ok(variable) => made.push(variable),
                Err(_) => {
                    return Err(Failure::BadVariable { name: Excerpt::new(name), fault: "whose value holds NUL" });
                }
            }
        }
        match total > max_len {
            true => Err(Failure::TooManyVariables { name: None, len: total, limit: max_len }),
            false => Ok(made),
        }
    }
}

/// What variables and arguments may come to: a quarter of the stack that programs may have, between 128 KiB and 6 MiB (execve(2)), less what is reserved.
fn max_len(stack: Option<u64>) -> usize {
    let quarter = stack.map_or(usize::MAX, |stack| usize::try_from(stack / 4).unwrap_or(usize::MAX));
    quarter.clamp(128 << 10, 6 << 20) - RESERVED_LEN
}

/// Whether an administrator may set a variable; if not why, or `None` where no environment can hold it.
fn check_set(name: &[u8], value: &[u8]) -> Result<(), Option<&'static str>> {
    const MADE_HERE: [&str; 8] = [
        names::GATEWAY_INTERFACE,
        names::SCRIPT_NAME,
        names::SCRIPT_FILENAME,
        names::PATH_INFO,
        names::PATH_TRANSLATED,
        names::CONTENT_LENGTH,
        names::REQUEST_METHOD,
        names::QUERY_STRING,
    ];
    if !is_environment_name(name) || !is_environment_value(value) {
        return Err(None);
    }
    if MADE_HERE.iter().any(|made| made.as_bytes() == name) {
        return Err(Some("made from the request and the script that was found"));
    }
    // In small letters it is the administrator's word, which no header field can become.
    if is_forbidden(name) && name.starts_with(b"HTTP_") {
        return Err(Some("what a request's header field would become (set http_proxy, in small letters)"));
    }
    Ok(())
}

/// A word of a query as an argument, if it can be one and is no option.
fn argument(word: &[u8]) -> Option<CString> {
    // What programs or other systems' conversions take for a hyphen: soft hyphen (also in Latin-1), the dashes, the minus, and their wide and small forms.
    const HYPHENS: [&[u8]; 14] = [
        b"-",
        b"\xad",
        "\u{ad}".as_bytes(),
        "\u{2010}".as_bytes(),
        "\u{2011}".as_bytes(),
        "\u{2012}".as_bytes(),
        "\u{2013}".as_bytes(),
        "\u{2014}".as_bytes(),
        "\u{2015}".as_bytes(),
        "\u{2043}".as_bytes(),
        "\u{2212}".as_bytes(),
        "\u{fe58}".as_bytes(),
        "\u{fe63}".as_bytes(),
        "\u{ff0d}".as_bytes(),
    ];
    // search-word = 1*schar; schar = unreserved | escaped | xreserved
    let mut rest = word;
    while let Some(byte) = rest.first() {
        let escaped = rest.len() >= 3 && rest[1..3].iter().all(u8::is_ascii_hexdigit);
        rest = match byte {
            b'%' if escaped => &rest[3..],
            b'-' | b'_' | b'.' | b'!' | b'~' | b'*' | b'\'' | b'(' | b')' => &rest[1..],
            b';' | b'/' | b'?' | b':' | b'@' | b'&' | b',' | b'$' => &rest[1..],
            byte if byte.is_ascii_alphanumeric() => &rest[1..],
            _ => return None,
        };
    }
    let decoded: Cow<'_, [u8]> = percent_decode(word).into();
    if decoded.is_empty() || HYPHENS.iter().any(|hyphen| decoded.starts_with(hyphen)) {
        return None;
    }
    CString::new(decoded).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::application::Variables;
    use crate::protocol::Pairs;

    fn script() -> Script {
        Script {
            file: "/srv/real/a.cgi".into(),
            directory: "/srv/cgi".into(),
            program: c"/srv/real/a.cgi".into(),
            arguments: vec![c"/srv/cgi/a.cgi".into()],
            script_name: b"/cgi/a.cgi".to_vec(),
            path_info: b"/rest".to_vec(),
            path_translated: Some(b"/srv/www/rest".to_vec()),
            script_filename: "/srv/cgi/a.cgi".into(),
            document_root: Some("/srv/www".into()),
            name: "/srv/cgi/a.cgi".into(),
        }
    }

    fn rules(config: &Config, own: &[(&str, &str)]) -> Rules {
        Rules::of(config, own.iter().map(|(name, value)| (name.into(), value.into()))).unwrap()
    }

    fn environ(variables: &[(&str, &str)]) -> Environ {
        Environ::new(variables.iter().copied().collect())
    }

    /// The environment as text, sorted.
    fn built(sent: &[(&str, &str)], rules: &Rules, script: &Script, content_length: Option<u64>) -> Vec<String> {
        let made = build(&environ(sent), script, rules, content_length).unwrap();
        let mut made: Vec<_> = made.into_iter().map(|each| each.into_string().unwrap()).collect();
        made.sort();
        made
    }

    fn value<'a>(built: &'a [String], name: &str) -> Option<&'a str> {
        let mut values =
            built.iter().filter_map(|each| each.split_once('=')).filter(|(other, _)| *other == name).map(|pair| pair.1);
        let found = values.next();
        assert_eq!(values.next(), None, "{name} is there once");
        found
    }

    #[test]
    fn an_environment_is_built_and_not_inherited() {
        let rules =
            rules(&Config::default(), &[("PATH", "/bin"), ("LC_TIME", "C"), ("HOME", "/root"), ("SECRET", "x")]);
        let sent = [
            ("GATEWAY_INTERFACE", "CGI/9"),
            ("REQUEST_METHOD", "POST"),
            ("SCRIPT_NAME", "/cgi/a.cgi/rest"),
            ("GIT_PROJECT_ROOT", "/srv/git"),
            ("CONTENT_LENGTH", "7"),
            ("CONTENT_TYPE", ""),
        ];
        let software = format!("SERVER_SOFTWARE={SERVER_SOFTWARE}");
        assert_eq!(
            built(&sent, &rules, &script(), Some(5)),
            [
                "CONTENT_LENGTH=5",
                "DOCUMENT_ROOT=/srv/www",
                "GATEWAY_INTERFACE=CGI/1.1",
                "GIT_PROJECT_ROOT=/srv/git",
                "LC_TIME=C",
                "PATH=/bin",
                "PATH_INFO=/rest",
                "PATH_TRANSLATED=/srv/www/rest",
                "QUERY_STRING=",
                "REDIRECT_STATUS=200",
                "REQUEST_METHOD=POST",
                "SCRIPT_FILENAME=/srv/cgi/a.cgi",
                "SCRIPT_NAME=/cgi/a.cgi",
                &software,
            ]
        );
    }

    #[test]
    fn what_is_not_there_is_unset() {
        let script = Script { path_info: Vec::new(), path_translated: None, document_root: None, ..script() };
        let sent = [
            ("CONTENT_LENGTH", ""),
            ("PATH_INFO", "/x"),
            ("PATH_TRANSLATED", "/y"),
            ("HTTP_TRANSFER_ENCODING", "chunked"),
        ];
        let made = built(&sent, &rules(&Config::default(), &[]), &script, None);
        for name in ["CONTENT_LENGTH", "PATH_INFO", "PATH_TRANSLATED", "DOCUMENT_ROOT", "HTTP_TRANSFER_ENCODING"] {
            assert_eq!(value(&made, name), None, "{name}");
        }
        assert_eq!(value(&made, "PATH"), Some(DEFAULT_PATH));
    }

    #[test]
    fn what_the_web_server_says_wins_over_this_process_and_the_administrator_over_both() {
        let config = Config {
            environment: vec![("TZ".into(), "UTC".into()), ("REMOTE_USER".into(), "fixed".into())],
            ..Config::default()
        };
        let rules = rules(&config, &[("LANG", "C"), ("TZ", "Europe/Berlin"), ("PATH", "/own")]);
        let made =
            built(&[("LANG", "de_DE"), ("REMOTE_USER", "sent"), ("REDIRECT_STATUS", "404")], &rules, &script(), None);
        assert_eq!(value(&made, "LANG"), Some("de_DE"));
        assert_eq!(value(&made, "TZ"), Some("UTC"));
        assert_eq!(value(&made, "REMOTE_USER"), Some("fixed"));
        assert_eq!(value(&made, "REDIRECT_STATUS"), Some("404"));
    }

    #[test]
    fn no_name_is_there_twice() {
        let sent = [
            ("HTTP_ACCEPT", "a"),
            ("A", "1"),
            ("HTTP_COOKIE", "x=1"),
            ("HTTP_ACCEPT", "b"),
            ("A", "2"),
            ("HTTP_COOKIE", "y=2"),
        ];
        let made = built(&sent, &rules(&Config::default(), &[("A", "0")]), &script(), None);
        assert_eq!(value(&made, "HTTP_ACCEPT"), Some("a, b"));
        assert_eq!(value(&made, "HTTP_COOKIE"), Some("x=1; y=2"));
        assert_eq!(value(&made, "A"), Some("2"));
    }

    #[test]
    fn what_steers_loaders_and_interpreters_is_dropped_unless_it_is_named() {
        let steering = [
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "LD_AUDIT",
            "BASH_ENV",
            "BASH_FUNC_ls%%",
            "ENV",
            "IFS",
            "SHELLOPTS",
            "BASHOPTS",
            "PS4",
            "CDPATH",
            "GLOBIGNORE",
            "PERL5OPT",
            "PERL5LIB",
            "PERLLIB",
            "PERL5DB",
            "PYTHONPATH",
            "PYTHONHOME",
            "PYTHONSTARTUP",
            "PYTHONINSPECT",
            "RUBYOPT",
            "RUBYLIB",
            "NODE_OPTIONS",
            "NODE_PATH",
            "JAVA_TOOL_OPTIONS",
            "_JAVA_OPTIONS",
            "LUA_PATH",
            "LUA_PATH_5_4",
            "LUA_CPATH",
            "LUA_INIT",
            "GCONV_PATH",
            "MALLOC_CHECK_",
            "GLIBC_TUNABLES",
            "TMPDIR",
            "GIT_SSH_COMMAND",
            "GIT_EXTERNAL_DIFF",
            "GIT_CONFIG_COUNT",
            "PHPRC",
            "PHP_INI_SCAN_DIR",
            "PHP_ADMIN_VALUE",
            "AWKPATH",
            "RES_OPTIONS",
            "RESOLV_HOST_CONF",
            "OPENSSL_CONF",
            "LISTEN_FDS",
        ];
        let mut sent: Vec<(&str, &str)> = steering.iter().map(|name| (*name, "bad")).collect();
        let harmless = [
            "GIT_PROJECT_ROOT",
            "GIT_HTTP_EXPORT_ALL",
            "GITWEB_CONFIG",
            "NODE_ENV",
            "SSL_CLIENT_S_DN",
            "LDAP",
            "ENVIRONMENT",
            "PHP_AUTH_USER",
        ];
        sent.extend(harmless.iter().map(|name| (*name, "good")));
        let made = built(&sent, &rules(&Config::default(), &[]), &script(), None);
        for name in steering {
            assert_eq!(value(&made, name), None, "{name}");
        }
        for name in harmless {
            assert_eq!(value(&made, name), Some("good"), "{name}");
        }
        let config =
            Config { pass_environment: vec!["PERL5LIB".into(), "LUA_*".into(), "TMPDIR".into()], ..Config::default() };
        let made = built(&sent, &rules(&config, &[("PERL5LIB", "own"), ("RUBYLIB", "own")]), &script(), None);
        for name in ["PERL5LIB", "LUA_PATH_5_4", "LUA_INIT", "TMPDIR"] {
            assert_eq!(value(&made, name), Some("bad"), "{name} as it was sent");
        }
        assert_eq!(value(&made, "PERL5OPT"), None);
        let made = built(&[], &rules(&config, &[("PERL5LIB", "own"), ("RUBYLIB", "own")]), &script(), None);
        assert_eq!(value(&made, "PERL5LIB"), Some("own"));
        assert_eq!(value(&made, "RUBYLIB"), None);
    }

    #[test]
    fn http_proxy_never_arrives() {
        let mut pairs = Pairs::new();
        for name in ["HTTP_PROXY", "http_proxy", "HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"] {
            pairs.push(name, "http://evil");
        }
        let environ = Environ::new(Variables::from_pairs(pairs));
        let config = Config { inherit: vec!["*".into()], pass_environment: vec!["*".into()], ..Config::default() };
        let rules = rules(&config, &[("HTTP_PROXY", "own"), ("HOME", "/root")]);
        let made = build(&environ, &script(), &rules, None).unwrap();
        assert!(made.contains(&c"HOME=/root".into()), "{made:?}");
        assert!(!made.iter().any(|each| each.to_bytes().to_ascii_uppercase().starts_with(b"HTTP_PROXY")), "{made:?}");
        let refused = Config { environment: vec![("HTTP_PROXY".into(), "x".into())], ..Config::default() };
        assert!(matches!(Rules::new(&refused), Err(ConfigError::Fixed { .. })));
        let meant = Config { environment: vec![("http_proxy".into(), "x".into())], ..Config::default() };
        assert!(Rules::new(&meant).is_ok());
    }

    #[test]
    fn authorization_goes_to_scripts_unless_the_administrator_says_no() {
        let sent = [("HTTP_AUTHORIZATION", "Basic eDp5"), ("HTTP_HOST", "h")];
        let made = built(&sent, &rules(&Config::default(), &[]), &script(), None);
        assert_eq!(value(&made, "HTTP_AUTHORIZATION"), Some("Basic eDp5"));
        let config = Config { authorization: false, ..Config::default() };
        let made = built(&sent, &rules(&config, &[]), &script(), None);
        assert_eq!((value(&made, "HTTP_AUTHORIZATION"), value(&made, "HTTP_HOST")), (None, Some("h")));
    }

    #[test]
    fn variables_that_no_environment_can_hold_are_refused() {
        for (name, value) in
            [(&b""[..], &b"x"[..]), (b"A=B", b"x"), (b"A\0", b"x"), (b"A", b"x\0y"), (b"HTTP_A", b"\0")]
        {
            let mut pairs = Pairs::new();
            pairs.push(name, value);
            let environ = Environ::new(Variables::from_pairs(pairs));
            let failure = build(&environ, &script(), &rules(&Config::default(), &[]), None).unwrap_err();
            assert_eq!(failure.status(), 400, "{failure}");
        }
        for name in ["", "A=B", "A\0"] {
            for config in [
                Config { environment: vec![(name.into(), "x".into())], ..Config::default() },
                Config { inherit: vec![name.into()], ..Config::default() },
                Config { pass_environment: vec![name.into()], ..Config::default() },
            ] {
                assert!(matches!(Rules::new(&config), Err(ConfigError::Variable(_))), "{name:?}");
            }
        }
        for name in ["SCRIPT_NAME", "CONTENT_LENGTH", "QUERY_STRING"] {
            let config = Config { environment: vec![(name.into(), "x".into())], ..Config::default() };
            assert!(matches!(Rules::new(&config), Err(ConfigError::Fixed { .. })), "{name}");
        }
    }

    #[test]
    fn what_the_system_would_not_pass_on_is_431() {
        let rules = rules(&Config::default(), &[]);
        let fits = "x".repeat(MAX_VARIABLE_LEN - "HTTP_A=\0".len());
        assert_eq!(value(&built(&[("HTTP_A", &fits)], &rules, &script(), None), "HTTP_A"), Some(&*fits));
        let long = fits.clone() + "x";
        let failure = build(&environ(&[("HTTP_A", &long)]), &script(), &rules, None).unwrap_err();
        assert!(
            matches!(failure, Failure::TooManyVariables { name: Some(_), .. }) && failure.status() == 431,
            "{failure}"
        );
        let names: Vec<String> = (0..64).map(|number| format!("HTTP_{number}")).collect();
        let sent: Vec<(&str, &str)> = names.iter().map(|name| (&**name, &fits[..100_000])).collect();
        let failure = build(&environ(&sent), &script(), &rules, None).unwrap_err();
        assert!(
            matches!(failure, Failure::TooManyVariables { name: None, .. }) && failure.status() == 431,
            "{failure}"
        );
    }

    /// The kernel is asked itself: the most that is let through is executed.
    #[test]
    fn what_is_let_through_the_system_passes_on() {
        use std::os::unix::ffi::OsStrExt;
        let rules = rules(&Config::default(), &[]);
        let value = "x".repeat(100_000);
        let names: Vec<String> = (0..64).map(|number| format!("V{number}")).collect();
        let most = (0..64)
            .rev()
            .find_map(|count| {
                let sent: Vec<(&str, &str)> = names[..count].iter().map(|name| (&**name, &*value)).collect();
                build(&environ(&sent), &script(), &rules, None).ok()
            })
            .unwrap();
        assert!(most.len() > 1, "there is room for at least one of 100,000 bytes");
        let pairs = most.iter().map(|each| {
            let bytes = each.to_bytes();
            let equals = bytes.iter().position(|byte| *byte == b'=').unwrap();
            (std::ffi::OsStr::from_bytes(&bytes[..equals]), std::ffi::OsStr::from_bytes(&bytes[equals + 1..]))
        });
        let status = std::process::Command::new("/bin/true").env_clear().envs(pairs).status();
        assert!(status.unwrap().success());
    }

    fn words(query: &str, method: &str, isindex: bool) -> Vec<Vec<u8>> {
        let config = Config { isindex, ..Config::default() };
        let environ = environ(&[("QUERY_STRING", query), ("REQUEST_METHOD", method)]);
        arguments(&environ, &rules(&config, &[])).into_iter().map(CString::into_bytes).collect()
    }

    #[test]
    fn an_indexed_query_becomes_arguments_only_where_that_is_asked_for() {
        assert_eq!(words("a+b%20c+%3D", "GET", true), [&b"a"[..], b"b c", b"="]);
        assert_eq!(words("a", "HEAD", true), [b"a"]);
        assert_eq!(words("a", "GET", false), [b""; 0]);
        assert_eq!(words("a", "POST", true), [b""; 0]);
    }

    #[test]
    fn a_query_that_can_not_be_arguments_or_might_be_options_is_none() {
        for query in [
            "",
            "a=b",
            "a+b=",
            "a++b",
            "+a",
            "a+",
            "-s",
            "a+-s",
            "%2ds",
            "%2Ds",
            "%ad-d",
            "%ADd",
            "%C2%ADd",
            "%E2%80%90d",
            "%e2%88%92d",
            "%EF%BC%8Dd",
            "%00",
            "a%00b",
            "a%",
            "a%2",
            "a%zz",
            "a\"b",
            "a b",
            "a\nb",
            "a\u{e9}",
            "a|b",
        ] {
            assert_eq!(words(query, "GET", true), [b""; 0], "{query:?}");
        }
        assert_eq!(words(&"a".repeat(MAX_ARGUMENTS_LEN + 1), "GET", true), [b""; 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_become_an_environment_without_repeats_or_a_failure(
            pairs in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..12), proptest::collection::vec(any::<u8>(), 0..20)), 0..20),
            query in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut all: Pairs = pairs.iter().map(|(name, value)| (name, value)).collect();
            all.push("QUERY_STRING", &query);
            all.push("REQUEST_METHOD", "GET");
            let environ = Environ::new(Variables::from_pairs(all));
            let rules = rules(&Config { isindex: true, ..Config::default() }, &[]);
            if let Ok(made) = build(&environ, &script(), &rules, Some(1)) {
                let mut names = std::collections::HashSet::new();
                for each in &made {
                    let name = each.to_bytes().split(|byte| *byte == b'=').next().unwrap();
                    prop_assert!(!name.is_empty() && names.insert(name.to_vec()), "{:?}", each);
                }
            }
            for argument in arguments(&environ, &rules) {
                prop_assert!(!argument.is_empty() && !argument.to_bytes().starts_with(b"-"));
            }
        }
    }
}
