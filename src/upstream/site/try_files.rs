//! What a path stands for: nginx's `try_files`, as people know it.

use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// What a value in a query is not made of.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A list of what is tried, one after the other, separated by blanks.
///
/// - `$uri`, or any other path without a slash at its end: is it a file?
/// - `$uri/`, or any other path with a slash at its end: is it a folder, with an index? Asked for without the slash, it is a redirect.
/// - `=404` or another status, as the last one: that is the answer.
/// - a path without `$uri` at its beginning, as the last one: this script or file is what the request is for, such as `/index.php?$args`.
///   With a `?` the script gets that query; without, the request's own.
///
/// Variables are `$uri` (or `$document_uri`), `$args` (or `$query_string`, `$query`) and `$is_args`, which is a `?` where there is a query.
/// A list that ends with neither a status nor a path to go to ends with `=404`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TryFiles {
    steps: Vec<Step>,
}

/// Why a text is no [`TryFiles`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TryFilesError {
    /// Nothing at all.
    #[error("expected a list such as \"$uri $uri/ /index.php?$args\", got nothing")]
    Empty,
    /// A status that is none, or not one of an answer.
    #[error("expected a status from =200 to =599, got \"{0}\"")]
    Status(String),
    /// A status that others follow, which nobody would ever get to.
    #[error("expected a status as the last of the list, got \"{0}\" before others")]
    StatusFirst(String),
    /// Not a path.
    #[error("expected a path that begins with / or $uri, got \"{0}\"")]
    Path(String),
    /// A variable that there is not.
    #[error("expected $uri, $args, $query_string or $is_args, got \"{0}\"")]
    Variable(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    File(Template),
    Folder(Template),
    Status(u16),
    Fallback(Template),
}

/// A path, and perhaps a query, with variables in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Uri,
    Args,
    IsArgs,
}

/// What becomes of a template.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Substituted {
    /// Decoded.
    pub(super) path: Vec<u8>,
    /// Encoded; none where the template has no `?`.
    pub(super) query: Option<Vec<u8>>,
}

impl TryFiles {
    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }
}

/// `$uri $uri/ =404`.
impl Default for TryFiles {
    fn default() -> Self {
        let uri = Template { parts: vec![Part::Uri] };
        let folder = Template { parts: vec![Part::Uri, Part::Text("/".into())] };
        Self { steps: vec![Step::File(uri), Step::Folder(folder), Step::Status(404)] }
    }
}

impl FromStr for TryFiles {
    type Err = TryFilesError;

    fn from_str(text: &str) -> Result<Self, TryFilesError> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let (last, before) = words.split_last().ok_or(TryFilesError::Empty)?;
        let mut steps = Vec::with_capacity(words.len() + 1);
        for word in before {
            if word.starts_with('=') {
                return Err(TryFilesError::StatusFirst((*word).into()));
            }
            steps.push(Step::test(word)?);
        }
        if let Some(digits) = last.strip_prefix('=') {
            let status = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            let status = status.and_then(|digits| digits.parse().ok()).filter(|status| (200..=599).contains(status));
            steps.push(Step::Status(status.ok_or_else(|| TryFilesError::Status((*last).into()))?));
        } else if last.starts_with('/') {
            steps.push(Step::Fallback(last.parse()?));
        } else {
            steps.push(Step::test(last)?);
            steps.push(Step::Status(404));
        }
        Ok(Self { steps })
    }
}

impl Step {
    fn test(word: &str) -> Result<Self, TryFilesError> {
        let template = word.parse()?;
        Ok(if word.ends_with('/') { Self::Folder(template) } else { Self::File(template) })
    }
}

impl FromStr for Template {
    type Err = TryFilesError;

    fn from_str(word: &str) -> Result<Self, TryFilesError> {
        let mut parts = Vec::new();
        let (text, mut rest) = word.split_at(word.find('$').unwrap_or(word.len()));
        if !text.is_empty() {
            parts.push(Part::Text(text.into()));
        }
        while let Some(variable) = rest.strip_prefix('$') {
            let end = variable.find(|of: char| !of.is_ascii_alphanumeric() && of != '_').unwrap_or(variable.len());
            parts.push(match &variable[..end] {
                "uri" | "document_uri" => Part::Uri,
                "args" | "query_string" | "query" => Part::Args,
                "is_args" => Part::IsArgs,
                other => return Err(TryFilesError::Variable(format!("${other}"))),
            });
            let (text, after) = variable[end..].split_at(variable[end..].find('$').unwrap_or(variable.len() - end));
            if !text.is_empty() {
                parts.push(Part::Text(text.into()));
            }
            rest = after;
        }
        match parts.first() {
            Some(Part::Uri) => {}
            Some(Part::Text(text)) if text.starts_with('/') => {}
            _ => return Err(TryFilesError::Path(word.into())),
        }
        Ok(Self { parts })
    }
}

impl Template {
    /// With the decoded path and the encoded query of a request. A `?` in that path is part of a name and begins no query.
    pub(super) fn substitute(&self, uri: &[u8], args: &[u8]) -> Substituted {
        let mut path = Vec::with_capacity(uri.len() + 32);
        let mut query: Option<Vec<u8>> = None;
        for part in &self.parts {
            match (part, &mut query) {
                (Part::Text(text), Some(query)) => query.extend_from_slice(text.as_bytes()),
                (Part::Text(text), None) => match text.split_once('?') {
                    Some((before, after)) => {
                        path.extend_from_slice(before.as_bytes());
                        query = Some(after.as_bytes().to_vec());
                    }
                    None => path.extend_from_slice(text.as_bytes()),
                },
                (Part::Uri, Some(query)) => {
                    query.extend(percent_encode(uri, QUERY_VALUE).flat_map(str::bytes));
                }
                (Part::Uri, None) => path.extend_from_slice(uri),
                (Part::Args, Some(query)) => query.extend_from_slice(args),
                // A query where a path should be: the request has none, or the list is odd.
                (Part::Args, None) => {}
                (Part::IsArgs, None) if !args.is_empty() => query = Some(Vec::new()),
                (Part::IsArgs, _) => {}
            }
        }
        Substituted { path, query }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(list: &str, uri: &str, args: &str) -> (String, Option<String>) {
        let list: TryFiles = list.parse().unwrap();
        let Some(Step::Fallback(template)) = list.steps().last() else { panic!("{list:?} goes nowhere") };
        let Substituted { path, query } = template.substitute(uri.as_bytes(), args.as_bytes());
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(path), query.map(text))
    }

    #[test]
    fn the_styles_of_the_known_front_controllers() {
        let table = [
            ("$uri $uri/ /index.php?$args", "a=1", "/index.php", Some("a=1")),
            ("$uri $uri/ /index.php?$query_string", "", "/index.php", Some("")),
            ("$uri /index.php$is_args$args", "a=1", "/index.php", Some("a=1")),
            ("$uri /index.php$is_args$args", "", "/index.php", None),
            ("$uri /index.php$uri?$query", "a=1", "/index.php/x y?&", Some("a=1")),
            ("$uri /index.php?q=$uri&$args", "a=1", "/index.php", Some("q=/x%20y%3F%26&a=1")),
            ("/index.php", "a=1", "/index.php", None),
        ];
        for (list, args, path, query) in table {
            assert_eq!(last(list, "/x y?&", args), (path.into(), query.map(str::to_owned)), "{list}");
        }
    }

    #[test]
    fn a_list_ends_with_an_answer() {
        assert_eq!("$uri $uri/ =404".parse(), Ok(TryFiles::default()));
        assert_eq!("$uri $uri/".parse(), Ok(TryFiles::default()));
        let list: TryFiles = "$uri.html /a$uri/ =410".parse().unwrap();
        assert!(matches!(list.steps(), [Step::File(_), Step::Folder(_), Step::Status(410)]));
    }

    #[test]
    fn every_mistake_has_its_own_message() {
        for (list, message) in [
            ("", "got nothing"),
            ("$uri =999", "=200 to =599"),
            ("$uri =+404", "=200 to =599"),
            ("=404 $uri", "as the last"),
            ("$uri index.php", "begins with /"),
            ("$args", "begins with /"),
            ("$uri /$host", "got \"$host\""),
        ] {
            let error = list.parse::<TryFiles>().expect_err(list).to_string();
            assert!(error.contains(message), "{list}: {error}");
        }
    }
}
