//! Whose folders `--root` names. `--root /PREFIX=FOLDER` is for the route of that prefix, `/=FOLDER` for TO; without a prefix it is for every cgi:
//! target, or for a site: that of TO, and where TO takes no folder, that of each fastcgi: route which has none of its own.

use std::path::{Path, PathBuf};

use gatespan::address::Address;

use super::{Arguments, UsageError};
use crate::values::{pair, prefix};

/// A folder, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Root {
    /// The prefix of its route, empty for TO; `None` where nothing was said.
    pub(crate) prefix: Option<String>,
    pub(crate) folder: PathBuf,
}

/// `FOLDER`, or `/PREFIX=FOLDER`.
pub(super) fn parse(text: &str) -> Result<Root, String> {
    const EXPECTED: &str = "FOLDER or /PREFIX=FOLDER, such as site/ or /blog=/srv/blog";
    let root = match text.starts_with('/') && text.contains('=') {
        false => Root { prefix: None, folder: text.into() },
        true => {
            let (before, folder) = pair(text, EXPECTED)?;
            Root { prefix: Some(prefix(before)?), folder: folder.into() }
        }
    };
    match root.folder.as_os_str().is_empty() {
        true => Err(format!("expected {EXPECTED}, got \"{text}\"")),
        false => Ok(root),
    }
}

fn is_served(to: &Address) -> bool {
    matches!(to, Address::FastCgi(_) | Address::FastCgiProgram(_))
}

fn takes_folders(to: &Address) -> bool {
    is_served(to) || matches!(to, Address::Cgi(_))
}

impl Arguments {
    /// TO, whose prefix is empty, and the routes.
    pub(super) fn answering(&self) -> impl Iterator<Item = (&str, &Address)> {
        std::iter::once(("", &self.to)).chain(self.routes.iter().map(|(prefix, to)| (&**prefix, to)))
    }

    /// The folder of the site that a target runs the scripts of, if it does.
    pub(super) fn site_root(&self, prefix: &str, to: &Address) -> Option<&Path> {
        if !is_served(to) {
            return None;
        }
        let is_for_it = prefix.is_empty() || !is_served(&self.to);
        self.own_roots(prefix).next().or_else(|| self.shared_site_root().filter(|_| is_for_it))
    }

    /// Whether any target has a site.
    pub(super) fn has_site(&self) -> bool {
        self.answering().any(|(prefix, to)| self.site_root(prefix, to).is_some())
    }

    /// Further folders of scripts for a cgi: target, be it at a prefix or asked about requests.
    pub(super) fn script_roots(&self, prefix: Option<&str>) -> Vec<PathBuf> {
        let shared = self.shared_roots().filter(|_| self.shared_site_root().is_none());
        shared.chain(prefix.into_iter().flat_map(|prefix| self.own_roots(prefix))).map(Path::to_owned).collect()
    }

    fn own_roots(&self, prefix: &str) -> impl Iterator<Item = &Path> {
        let is_own = move |root: &&Root| root.prefix.as_deref() == Some(prefix);
        self.scripts.roots.iter().filter(is_own).map(|root| &*root.folder)
    }

    fn shared_roots(&self) -> impl Iterator<Item = &Path> {
        self.scripts.roots.iter().filter(|root| root.prefix.is_none()).map(|root| &*root.folder)
    }

    /// The folder without a prefix, where it is a site's: TO says which it is, and if TO takes none, the routes do.
    fn shared_site_root(&self) -> Option<&Path> {
        let routes = || self.routes.iter().map(|(_, to)| to);
        let is_site = match &self.to {
            to if is_served(to) => true,
            Address::Cgi(_) => false,
            _ => !routes().any(|to| matches!(to, Address::Cgi(_))) && routes().any(is_served),
        };
        self.shared_roots().next().filter(|_| is_site)
    }

    /// Refuses folders that are nobody's, and a second one for a site.
    pub(super) fn check_roots(&self) -> Result<(), UsageError> {
        let refuse = |message| Err(UsageError(message));
        for Root { prefix, folder } in &self.scripts.roots {
            let (Some(prefix), folder) = (prefix, folder.display()) else { continue };
            match self.answering().find(|(other, _)| other == prefix) {
                None => {
                    return refuse(format!(
                        "--root {prefix}={folder} is for the prefix of a --route, and there is no --route {prefix}=…; a folder with = in its path \
                         is written --root /=FOLDER"
                    ));
                }
                Some((_, to)) if !takes_folders(to) => {
                    return refuse(format!("--root {prefix}={folder} is for cgi: or fastcgi:, and {to} is neither"));
                }
                _ => {}
            }
        }
        for (prefix, to) in self.answering().filter(|(_, to)| is_served(to)) {
            let is_shared = prefix.is_empty() && self.shared_site_root().is_some();
            if self.own_roots(prefix).count() + usize::from(is_shared) > 1 {
                return refuse(format!("--root can't be repeated for {to}, where it is the folder of one site"));
            }
        }
        if let Some(folder) = self.shared_site_root() {
            if self.shared_roots().count() > 1 {
                return refuse(
                    "--root can't be repeated with fastcgi: targets, where it is the folder of one site".into(),
                );
            }
            let takes = |(prefix, to): (&str, &Address)| self.site_root(prefix, to) == Some(folder);
            if !self.answering().any(takes) {
                let folder = folder.display();
                return refuse(format!(
                    "--root {folder} has no effect, since each fastcgi: target has a folder of its own"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::arguments::tests::arguments;
    use super::*;

    #[test]
    fn a_root_is_a_folder_with_or_without_a_prefix() {
        let root = |prefix: Option<&str>, folder: &str| Root { prefix: prefix.map(Into::into), folder: folder.into() };
        for (text, expected) in [
            ("site", root(None, "site")),
            ("/srv/www", root(None, "/srv/www")),
            ("a=b", root(None, "a=b")),
            ("./a=b", root(None, "./a=b")),
            ("/blog=/srv/blog", root(Some("/blog"), "/srv/blog")),
            ("/blog/=blog", root(Some("/blog"), "blog")),
            ("/=/srv/a=b", root(Some(""), "/srv/a=b")),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        for text in ["", "/blog=", "/a?b=c"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn each_route_has_its_own_folder() {
        let words = ["http://127.0.0.1:0", "fastcgi:/a.sock", "--route", "/b=fastcgi:/b.sock"];
        let site = |more: &[&str], prefix| {
            let arguments = arguments(&[&words, more].concat());
            arguments.check_roots().unwrap();
            let (_, to) = arguments.answering().find(|(other, _)| *other == prefix).unwrap();
            arguments.site_root(prefix, to).map(|path| path.display().to_string())
        };
        let folder = |name: &str| Some(name.to_owned());
        assert_eq!((site(&["--root", "one"], ""), site(&["--root", "one"], "/b")), (folder("one"), None));
        let both = ["--root", "one", "--root", "/b=two"];
        assert_eq!((site(&both, ""), site(&both, "/b")), (folder("one"), folder("two")));
        let last = ["--root", "/b=two"];
        assert_eq!((site(&last, ""), site(&last, "/b")), (None, folder("two")));
        assert_eq!(site(&["--root", "/=/srv/a=b"], ""), folder("/srv/a=b"));
    }

    #[test]
    fn a_folder_of_scripts_is_for_all_or_for_one() {
        let words = ["http://127.0.0.1:0", "cgi:/a/", "--route", "/b=cgi:/b/", "--root", "/b=/c", "--root", "/d"];
        let arguments = arguments(&words);
        arguments.check_roots().unwrap();
        assert_eq!(arguments.script_roots(Some("")), [Path::new("/d")]);
        assert_eq!(arguments.script_roots(Some("/b")), [Path::new("/d"), Path::new("/c")]);
        assert_eq!(arguments.script_roots(None), [Path::new("/d")]);
    }

    #[test]
    fn folders_that_are_nobody_s_are_refused() {
        let words = ["http://127.0.0.1:0", "app:hello", "--route", "/a=fastcgi:/a.sock", "--route", "/b=app:echo"];
        for (more, part) in [
            (&["--root", "/c=one"][..], "there is no --route /c=…"),
            (&["--root", "/b=one"], "app:echo is neither"),
            (&["--root", "/=one"], "app:hello is neither"),
            (&["--root", "/a=one", "--root", "/a=two"], "can't be repeated for fastcgi:/a.sock"),
            (&["--root", "one", "--root", "two"], "can't be repeated"),
            (&["--root", "/a=one", "--root", "two"], "--root two has no effect"),
        ] {
            let error = arguments(&[&words, more].concat()).check_roots().expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
        let words = ["http://127.0.0.1:0", "fastcgi:/a.sock", "--root", "one", "--root", "/=two"];
        assert!(arguments(&words).check_roots().is_err());
    }
}
