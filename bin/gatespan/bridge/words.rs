//! Which words of the command line are the administrator's, where this process is a CGI script.
//!
//! With `#!/usr/bin/env -S gatespan bridge cgi: TO` as its first line, a script of two lines is a bridge. The system puts the
//! script's path behind these words, and the web server may append words of the client's query (RFC 3875 4.4), of which
//! CVE-2012-1823 was made. So the words up to TO are read, and whatever follows is not looked at: not as an option, not as anything else.

use std::ffi::OsString;

use clap::Command;

/// The words up to TO, where FROM is `cgi:`; `None` where it is not, or where not all of `bridge`, FROM and TO are there for certain. Where options
/// stand before TO, they are taken as the parser would take them.
pub(super) fn up_to_target(tool: &Command, words: &[OsString]) -> Option<Vec<OsString>> {
    let bridge = tool.find_subcommand("bridge")?;
    let options = || bridge.get_arguments().chain(tool.get_arguments());
    let takes_value = |found: Option<&clap::Arg>| found.map(|option| option.get_action().takes_values());
    let mut positionals = ["bridge", "cgi:"].into_iter();
    let mut rest = words.iter().enumerate().skip(1);
    while let Some((index, word)) = rest.next() {
        // Every name of an option is text. A value that is none is skipped with its option.
        let text = word.to_str()?;
        let has_value_behind = if let Some(name) = text.strip_prefix("--") {
            match name.split_once('=') {
                Some((name, _)) => {
                    takes_value(options().find(|option| option.get_long() == Some(name))).filter(|takes| *takes)?;
                    false
                }
                None => takes_value(options().find(|option| option.get_long() == Some(name)))?,
            }
        } else if let Some(letters) = text.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            let mut letters = letters.chars();
            loop {
                let Some(letter) = letters.next() else { break false };
                if takes_value(options().find(|option| option.get_short() == Some(letter)))? {
                    // What is left of the word is the value, else the next word is.
                    break letters.as_str().is_empty();
                }
            }
        } else {
            match positionals.next() {
                Some(expected) if text == expected => false,
                Some(_) => return None,
                None => return Some(words[..=index].to_vec()),
            }
        };
        if has_value_behind {
            rest.next()?;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn cut(line: &str) -> Option<String> {
        let tool = crate::Cli::command();
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let words = up_to_target(&tool, &words)?;
        Some(words.join(" ".as_ref()).into_string().unwrap())
    }

    #[test]
    fn what_follows_the_target_is_never_read() {
        let own = "gatespan bridge cgi: cgi:/srv/x";
        for foreign in [
            "",
            " /srv/script",
            " /srv/script --help",
            " --debug",
            " -s",
            " --",
            " -- --root /",
            " cgi:/bin/sh --env A=b",
        ] {
            assert_eq!(cut(&format!("{own}{foreign}")).as_deref(), Some(own), "{foreign}");
        }
    }

    #[test]
    fn options_before_the_target_take_their_values_with_them() {
        for own in [
            "gatespan bridge --timeout 3s cgi: app:hello",
            "gatespan -q bridge --timeout=3s cgi: app:hello",
            "gatespan bridge cgi: -c 3 -c4 --isindex --log-format json app:hello",
            "gatespan bridge --env cgi: cgi: app:hello",
            "gatespan bridge --debug -fqc 3 cgi: app:hello",
            "gatespan bridge --route /a=app:echo cgi: app:hello",
        ] {
            assert_eq!(cut(&format!("{own} --root /")).as_deref(), Some(own));
        }
    }

    #[test]
    fn what_is_not_certain_is_refused() {
        for line in [
            "gatespan",
            "gatespan bridge",
            "gatespan bridge cgi:",
            "gatespan bridge /srv/script",
            "gatespan bridge --root",
            "gatespan bridge --no-such-option cgi: app:hello",
            "gatespan bridge --no-such-option=1 cgi: app:hello",
            "gatespan bridge --debug=1 cgi: app:hello",
            "gatespan bridge -z cgi: app:hello",
            "gatespan bridge -- cgi: app:hello",
            "gatespan bridge cgi: -- app:hello",
            "gatespan bridge http://127.0.0.1:0 app:hello",
            "gatespan demo cgi: app:hello",
            "gatespan cgi: bridge app:hello",
            "gatespan bridge cgi:/srv app:hello",
            "gatespan bridge fastcgi:fd cgi: app:hello",
        ] {
            assert_eq!(cut(line), None, "{line}");
        }
    }
}
