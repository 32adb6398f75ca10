//! The demo's pages as HTML. Everything that came from a request or an application is escaped by [`Text`].

use std::fmt::{self, Display, Formatter, Write as _};
use std::time::Duration;

use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What came back through one gateway.
#[derive(Debug)]
pub(crate) struct Seen {
    /// What the gateway is called.
    pub(crate) label: &'static str,
    /// Below which path it is.
    pub(crate) prefix: &'static str,
    /// How the application is reached, in words.
    pub(crate) how: String,
    /// From the request to the last byte of the answer.
    pub(crate) took: Duration,
    /// The answer, or why there is none.
    pub(crate) answer: Result<Answer, String>,
}

/// An answer as it left its gateway.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

/// What an application was told through one gateway, names and values in their order.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// The request's variables.
    pub(crate) variables: Vec<(String, String)>,
    /// What the interface adds.
    pub(crate) interface: Vec<(String, String)>,
}

/// Nothing is loaded from anywhere, and no style or script runs but the two that are compiled in, which their digests name.
pub(crate) fn content_security_policy() -> String {
    format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; img-src data:; connect-src 'self'; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'",
        digest(STYLE),
        digest(SCRIPT)
    )
}

/// The page with everything on it. Of what an application was told, an error is text.
pub(crate) fn comparison(address: &str, seen: &[Seen; 3], told: &[Result<Told, String>; 3]) -> String {
    document("One application, three gateways", |html| {
        html.push_str(
            "<header><h1>One application, three gateways</h1>\n<p class=\"lede\">The same small application answers on \
             its own port, behind FastCGI, and as a CGI script. It is written once, against <code>environ</code> and \
             <code>start_response</code>, and nothing in it depends on which of the three a request comes through.</p>\n<nav \
             aria-label=\"On this page\"><ul><li><a href=\"#answers\">Answers</a></li><li><a href=\"#streams\">Event \
             streams</a></li><li><a href=\"#environ\">Environ</a></li><li><a href=\"#send\">Form and upload</a></li>\
             </ul></nav></header>\n<main>\n<section id=\"answers\"><h2>Three answers</h2>\n<p class=\"note\">A request \
             for <code>/</code>, made when this page was, and what came back through each gateway.</p>\n",
        );
        ways(html, seen);
        html.push_str("</section>\n");
        streams(html, seen);
        environ(html, seen, told);
        send(html);
        html.push_str("</main>\n");
        footer(html, address);
        let _ = writeln!(html, "<script>{SCRIPT}</script>");
    })
}

/// What arrived of a form.
pub(crate) fn form(seen: &[Seen; 3]) -> String {
    let same = agree(seen, |body| Some(body.to_owned()));
    let verdict = if same { "The same form arrived through all three gateways." } else { "The three answers differ." };
    result("A form, through three gateways", verdict, same, seen)
}

/// What arrived of an upload.
pub(crate) fn upload(seen: &[Seen; 3]) -> String {
    // Into how many pieces the body was cut on its way is each gateway's own affair.
    let same = agree(seen, |body| Some(body.split_once("arrived  ")?.0.to_owned()));
    let verdict = match same {
        true => "The same file arrived through all three gateways.",
        false => "The three answers differ.",
    };
    result("An upload, through three gateways", verdict, same, seen)
}

fn agree(seen: &[Seen; 3], of_interest: impl Fn(&str) -> Option<String>) -> bool {
    let [first, second, third] =
        seen.each_ref().map(|seen| seen.answer.as_ref().ok().and_then(|answer| of_interest(&answer.body)));
    first.is_some() && first == second && second == third
}

fn result(title: &str, verdict: &str, same: bool, seen: &[Seen; 3]) -> String {
    document(title, |html| {
        let mark = if same { Mark::Equal } else { Mark::Different };
        let _ = write!(
            html,
            "<header><h1>{title}</h1></header>\n<main>\n<p class=\"verdict\">{mark} {verdict}</p>\n<section \
             aria-label=\"Answers\">"
        );
        ways(html, seen);
        html.push_str("</section>\n<p class=\"verdict\"><a href=\"/\">Back to the comparison</a></p>\n</main>\n");
    })
}

fn document(title: &str, content: impl FnOnce(&mut String)) -> String {
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>{title} · Gatespan</title>\n<link rel=\"icon\" \
         href=\"data:,\">\n<style>{STYLE}</style>\n</head>\n<body>\n"
    );
    content(&mut html);
    html.push_str("</body>\n</html>\n");
    html
}

/// The answers side by side.
fn ways(html: &mut String, seen: &[Seen; 3]) {
    html.push_str("<div class=\"ways\">\n");
    for seen in seen {
        let (class, label) = (&seen.prefix[1..], seen.label);
        let _ = writeln!(html, "<article class=\"way {class}\"><h3>{label}</h3>");
        let _ = write!(html, "<p class=\"how\">{}</p>\n<pre", Text(&seen.how));
        match &seen.answer {
            Ok(answer) => {
                let _ = writeln!(html, "><span class=\"status\">{}</span>", Text(&answer.status));
                for (name, value) in &answer.headers {
                    let _ = writeln!(html, "<span class=\"field\">{}:</span> {}", Text(name), Text(value));
                }
                let _ = write!(html, "\n{}</pre>", Text(answer.body.trim_end()));
            }
            Err(error) => {
                let _ = write!(html, " class=\"failed\">No answer: {}</pre>", Text(error));
            }
        }
        let _ = writeln!(html, "<p class=\"took\">in {:.1} ms</p></article>", seen.took.as_secs_f64() * 1000.0);
    }
    html.push_str("</div>\n");
}

/// The columns that tick.
fn streams(html: &mut String, seen: &[Seen; 3]) {
    html.push_str(
        "<section id=\"streams\"><h2>Three event streams</h2>\n<p class=\"note\">The application sends an event twice a \
         second. Each should arrive when it is sent, and not later in a bundle.</p>\n<noscript><p>The ticking needs \
         JavaScript; <code>curl -N</code> with one of the addresses below shows the same streams.</p></noscript>\n<div \
         class=\"ways\">\n",
    );
    for seen in seen {
        let (class, label) = (&seen.prefix[1..], seen.label);
        let _ = writeln!(
            html,
            "<article class=\"way {class}\" data-stream=\"{}/events\"><h3>{label} <span \
             class=\"state\">closed</span></h3>",
            seen.prefix
        );
        html.push_str(
            "<p class=\"tick\">–</p>\n<div class=\"beat\" \
             aria-hidden=\"true\"><i></i><i></i><i></i><i></i><i></i><i></i><i></i><i></i></div>\n<p \
             class=\"detail\">no event yet</p></article>\n",
        );
    }
    html.push_str("</div>\n<button type=\"button\" hidden>Stop the streams</button></section>\n");
}

/// What the application was told, compared.
fn environ(html: &mut String, seen: &[Seen; 3], told: &[Result<Told, String>; 3]) {
    html.push_str(
        "<section id=\"environ\"><h2>What the application was told</h2>\n<p class=\"note\">Every variable of the \
         <code>environ</code>, as the application itself lists it through each gateway.</p>\n",
    );
    for (seen, told) in seen.iter().zip(told) {
        if let Err(error) = told {
            let _ = writeln!(html, "<pre class=\"failed\">{}: no answer: {}</pre>", seen.label, Text(error));
        }
    }
    let nothing = Told::default();
    let told = told.each_ref().map(|told| told.as_ref().unwrap_or(&nothing));
    let (equal, unequal): (Vec<_>, Vec<_>) =
        compare(told.map(|told| &told.variables)).into_iter().partition(|row| row.mark == Mark::Equal);
    let count = |mark| unequal.iter().filter(|row| row.mark == mark).count();
    let counts =
        [(Mark::Equal, equal.len()), (Mark::Different, count(Mark::Different)), (Mark::Missing, count(Mark::Missing))];
    html.push_str("<ul class=\"counts\">");
    for (mark, count) in counts {
        let _ = write!(
            html,
            "<li><span class=\"mark {}\">{} {count} {}</span></li>",
            mark.name(),
            mark.sign(),
            mark.name()
        );
    }
    html.push_str("</ul>\n");
    let labels = seen.each_ref().map(|seen| (seen.label, &seen.prefix[1..]));
    html.push_str("<div class=\"sheet\">");
    table(html, "Variables that are not the same everywhere", &unequal, &labels);
    html.push_str("</div>\n<details class=\"sheet\" open><summary>Variables that are the same everywhere</summary>");
    table(html, "", &equal, &labels);
    html.push_str("</details>\n<div class=\"sheet\">");
    let interface = compare(told.map(|told| &told.interface));
    table(html, "What the interface says about the gateway (PEP 3333)", &interface, &labels);
    html.push_str("</div></section>\n");
}

fn table(html: &mut String, caption: &str, rows: &[Row<'_>], labels: &[(&str, &str); 3]) {
    html.push_str("<table role=\"table\">");
    if !caption.is_empty() {
        let _ = write!(html, "<caption>{caption}</caption>");
    }
    html.push_str(
        "\n<thead role=\"rowgroup\"><tr role=\"row\"><th role=\"columnheader\" scope=\"col\" \
         class=\"col-name\">Variable</th><th role=\"columnheader\" scope=\"col\" class=\"col-mark\">Compared</th>",
    );
    for (label, class) in labels {
        let _ = write!(html, "<th role=\"columnheader\" scope=\"col\" class=\"way-name {class}\">{label}</th>");
    }
    html.push_str("</tr></thead>\n<tbody role=\"rowgroup\">\n");
    for row in rows {
        let _ = write!(html, "<tr role=\"row\"><th role=\"rowheader\" scope=\"row\">{}", Text(row.name));
        if let Some(note) = note(row.name) {
            let _ = write!(html, "<small>{note}</small>");
        }
        let _ = write!(html, "</th><td role=\"cell\" class=\"compared\">{}</td>", row.mark);
        if let (Mark::Equal, [Some(value), ..]) = (row.mark, row.values) {
            let _ = write!(html, "<td role=\"cell\" class=\"value all\" colspan=\"3\">{}</td>", Value(Some(value)));
        } else {
            for ((label, class), value) in labels.iter().zip(row.values) {
                let value = Value(value);
                let _ = write!(html, "<td role=\"cell\" class=\"value {class}\" data-way=\"{label}\">{value}</td>");
            }
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table>");
}

/// Why a variable is not the same everywhere.
fn note(name: &str) -> Option<&'static str> {
    Some(match name {
        "SCRIPT_NAME" | "REQUEST_URI" => "where the application is mounted",
        "SCRIPT_FILENAME" => "only a script has a file",
        super::cgi_probe::MARKER => "by which this program knows that it is the demo’s script",
        "gateway" => "what called the application",
        "process" => "HTTP and FastCGI share one here; a script has its own",
        "wsgi.multithread" => "whether it may be called by several threads at once",
        "wsgi.multiprocess" => "whether other processes serve it too",
        "wsgi.run_once" => "whether the process ends after one request",
        _ => return None,
    })
}

fn send(html: &mut String) {
    html.push_str(
        "<section id=\"send\"><h2>Send something through all three</h2>\n<p class=\"note\">The next page shows what arrived \
         through each gateway.</p>\n<div class=\"forms\">\n<form method=\"post\" action=\"/form\">\n<h3>A form</h3>\n\
         <label>Name <input name=\"name\" value=\"Zoë &amp; Łukasz\" autocomplete=\"off\"></label>\n<label>Message \
         <textarea name=\"message\" rows=\"3\">100 % of &lt;what&gt; you type = what arrives?</textarea></label>\n\
         <button>Send the form</button></form>\n<form method=\"post\" action=\"/upload\" \
         enctype=\"multipart/form-data\">\n<h3>A file</h3>\n<p class=\"note\">It streams through all three at once, is \
         kept nowhere, and its length and SHA-256 come back. Compare them with <code>sha256sum</code>.</p>\n<label>File \
         <input type=\"file\" name=\"file\" required></label>\n<button>Upload the file</button></form>\n</div></section>\n",
    );
}

fn footer(html: &mut String, address: &str) {
    html.push_str("<footer><h2>Without the page</h2>\n<dl>\n");
    for (command, meaning) in [
        ("curl -i {}http/", "the greeting, over HTTP"),
        ("curl {}fastcgi/environ", "the environ as JSON, through FastCGI"),
        ("curl -N {}cgi/events", "the event stream of a CGI script"),
        ("curl -T FILE {}cgi/upload", "a file’s length and checksum"),
    ] {
        let command = command.replace("{}", address);
        let _ = writeln!(html, "<dt><code>{}</code></dt><dd>{meaning}</dd>", Text(&command));
    }
    html.push_str("</dl></footer>\n");
}

/// How a variable compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Equal,
    /// There everywhere, not with the same value.
    Different,
    /// Not there everywhere.
    Missing,
}

impl Mark {
    fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Different => "different",
            Self::Missing => "missing",
        }
    }

    fn sign(self) -> char {
        match self {
            Self::Equal => '=',
            Self::Different => '≠',
            Self::Missing => '∅',
        }
    }
}

/// A sign and a word; the colour only repeats them.
impl Display for Mark {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "<span class=\"mark {0}\">{1} {0}</span>", self.name(), self.sign())
    }
}

/// A variable through the three gateways.
#[derive(Debug)]
struct Row<'a> {
    name: &'a str,
    values: [Option<&'a str>; 3],
    mark: Mark,
}

/// Compares variable by variable, in the order in which the names first come.
fn compare<'a>(told: [&'a Vec<(String, String)>; 3]) -> Vec<Row<'a>> {
    let mut rows: Vec<Row<'a>> = Vec::new();
    for (name, _) in told.into_iter().flatten() {
        if rows.iter().any(|row| row.name == name) {
            continue;
        }
        let values = told.map(|told| told.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str()));
        let [first, ..] = values;
        let mark = match () {
            () if values.contains(&None) => Mark::Missing,
            () if values.iter().all(|value| *value == first) => Mark::Equal,
            () => Mark::Different,
        };
        rows.push(Row { name, values, mark });
    }
    rows
}

/// A variable's value.
struct Value<'a>(Option<&'a str>);

impl Display for Value<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("<span class=\"none\">missing</span>"),
            Some("") => f.write_str("<span class=\"empty\">empty</span>"),
            Some(value) => write!(f, "<span>{}</span>", Text(value)),
        }
    }
}

/// Text in HTML, between tags and in quoted attributes.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // HTML has no way to say them.
                '\n' | '\t' => f.write_char(character)?,
                control if control.is_control() => f.write_char('\u{fffd}')?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// What a content security policy calls an inline style or script (CSP level 3, section 2.3.1).
fn digest(text: &str) -> String {
    format!("sha256-{}", base64(&Sha256::digest(text)))
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for index in 0..4 {
            let six = (bits >> (18 - 6 * index) & 63) as usize;
            encoded.push(if index <= group.len() { ALPHABET[six].into() } else { '=' });
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(label: &'static str, body: Result<&str, &str>) -> Seen {
        let answer = body
            .map(|body| Answer { status: "200 <OK>".into(), headers: Vec::new(), body: body.into() })
            .map_err(Into::into);
        Seen { label, prefix: "/x", how: "<how>".into(), took: Duration::from_millis(1), answer }
    }

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")]
        {
            assert_eq!(base64(bytes.as_bytes()), encoded);
        }
    }

    #[test]
    fn variables_are_equal_different_or_missing() {
        let told = [
            variables(&[("A", "1"), ("B", "1"), ("C", "1")]),
            variables(&[("A", "1"), ("B", "2"), ("C", "1")]),
            variables(&[("D", ""), ("A", "1"), ("B", "1")]),
        ];
        let rows = compare(told.each_ref());
        let marks: Vec<_> = rows.iter().map(|row| (row.name, row.mark)).collect();
        let expected = [("A", Mark::Equal), ("B", Mark::Different), ("C", Mark::Missing), ("D", Mark::Missing)];
        assert_eq!(marks, expected);
        assert_eq!(rows[3].values, [None, None, Some("")]);
    }

    #[test]
    fn nothing_that_came_from_elsewhere_is_markup() {
        let hostile = "<script>alert('\"&\u{1}')</script>";
        let told = || Told { variables: variables(&[(hostile, hostile)]), interface: variables(&[(hostile, "1")]) };
        let pages = [
            comparison(
                hostile,
                &["HTTP", "FastCGI", "CGI"].map(|label| seen(label, Ok(hostile))),
                &[Ok(told()), Ok(Told::default()), Err(hostile.into())],
            ),
            upload(&["HTTP", "FastCGI", "CGI"].map(|label| seen(label, Err(hostile)))),
        ];
        for page in pages {
            assert!(!page.contains("<script>alert"), "{page}");
            assert!(!page.contains('\u{1}'));
            assert!(page.contains("&lt;script&gt;alert(&#39;&quot;&amp;\u{fffd}&#39;)&lt;/script&gt;"));
            assert!(page.contains("&lt;how&gt;"));
        }
    }

    #[test]
    fn answers_agree_only_when_there_are_three() {
        let of = |bodies: [Result<&str, &str>; 3]| bodies.map(|body| seen("x", body));
        assert!(form(&of([Ok("a"); 3])).contains("= equal"));
        assert!(form(&of([Ok("a"), Ok("a"), Ok("b")])).contains("≠ different"));
        assert!(form(&of([Err("a"); 3])).contains("≠ different"));
        let pieces = [Ok("bytes 1\narrived  in 1"), Ok("bytes 1\narrived  in 2"), Ok("bytes 1\narrived  in 3")];
        assert!(upload(&of(pieces)).contains("= equal"));
    }
}
