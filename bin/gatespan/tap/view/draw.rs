//! What the view looks like.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};

use super::super::following::{Kept, Parts, Request, clause, duration, size, text};
use super::super::lines::moment;
use super::{Page, View};

const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const RED: Style = Style::new().fg(Color::Red);

/// The parts of a bar: each has a character of its own, so that they are told apart without colours.
const PARTS: [(&str, &str, Color); 4] = [
    ("c", "connect", Color::Blue),
    ("p", "params", Color::Cyan),
    ("w", "first byte", Color::Yellow),
    ("b", "last byte", Color::Green),
];

pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View) {
    let [top, middle, bottom] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(2)]).areas(frame.area());
    draw_top(frame, view, top);
    let keys = match view.page.clone() {
        Page::List => {
            draw_list(frame, view, middle);
            "q quit  ↑↓ select  Enter open  / filter  Space pause  m messages  ? help"
        }
        Page::Request(..) => {
            draw_request(frame, view, middle);
            "q back  ↑↓ PgUp PgDn scroll  Space pause"
        }
        Page::Help => {
            frame.render_widget(Paragraph::new(HELP), middle);
            "q back"
        }
        Page::Messages => {
            draw_messages(frame, view, middle);
            "q back"
        }
    };
    draw_bottom(frame, view, keys, bottom);
}

fn draw_top(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let running = view.following.running().count();
    let mut counts = format!("{running} running, {} over, {:.0}/s", view.total, view.per_second());
    if view.missed > 0 {
        counts.push_str(", some missed");
    }
    let about = &view.about;
    let ways = format!("{} → {}", about.from, about.to);
    let first = Line::from(vec![Span::styled("gatespan tap ", BOLD), Span::raw(ways)]);
    let mut second = Line::styled(format!("{counts}; recording to {}", about.file), DIM);
    if view.is_paused {
        second.spans.insert(0, Span::styled(" PAUSED ", Style::new().add_modifier(Modifier::REVERSED)));
        second.spans.insert(1, Span::raw(" "));
    }
    frame.render_widget(Paragraph::new(vec![first, second]), area);
}

fn draw_bottom(frame: &mut Frame<'_>, view: &View, keys: &'static str, area: Rect) {
    let message = view.messages.last().or(view.loose.back());
    let label = Span::styled("filter: ", BOLD);
    let first = match (view.is_filtering, view.filter.as_str()) {
        (true, filter) => Line::from(vec![label, Span::raw(filter), Span::raw("▏")]),
        (false, "") => Line::styled(message.map_or("", String::as_str), DIM),
        (false, filter) => Line::from(vec![label, Span::raw(filter), Span::styled("  (Esc clears it)", DIM)]),
    };
    frame.render_widget(Paragraph::new(vec![first, Line::styled(keys, DIM)]), area);
}

fn draw_list(frame: &mut Frame<'_>, view: &mut View, area: Rect) {
    // What is left beside the columns of a fixed width goes to what was asked for and to the bar.
    let fixed = 12 + 1 + 6 + 1 + 6 + 1 + 6 + 1 + 7 + 1;
    let rest = area.width.saturating_sub(fixed);
    let bar = (rest / 3).clamp(10, 40).min(rest);
    let longest =
        view.listed.iter().take(usize::from(area.height)).map(|request| request.parts(view.now).total()).max();
    let longest = longest.unwrap_or(0).max(1_000_000);
    let visible = usize::from(area.height);
    // Rows far from what can be seen need not be made.
    let selected = view.index();
    let start = selected.map_or(0, |index| index.saturating_sub(visible));
    let rows = view.listed.iter().skip(start).take(2 * visible).map(|request| {
        let (method, uri) = request.target();
        let parts = request.parts(view.now);
        let style = match (request.times.ended, request.status) {
            (None, _) => BOLD,
            (_, Some(500..)) | (_, None) => RED,
            (_, Some(400..)) => Style::new().fg(Color::Yellow),
            _ => Style::new(),
        };
        let mark = if request.findings.is_empty() && request.why.is_none() { "" } else { "!" };
        Row::new(vec![
            Cell::from(moment(request.times.begun)),
            Cell::from(format!("{}{mark}", request.outcome())),
            Cell::from(method),
            Cell::from(uri),
            Cell::from(Line::from(size(request.body.len)).right_aligned()),
            Cell::from(Line::from(duration(parts.total())).right_aligned()),
            Cell::from(bar_line(parts, longest, bar.into())),
        ])
        .style(style)
    });
    let widths = [
        Constraint::Length(12),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Min(8),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(bar),
    ];
    let legend = match bar {
        ..20 => format!("TO {}", duration(longest)),
        _ => format!("TIMING, up to {}", duration(longest)),
    };
    let header = Row::new(["BEGUN", "STATUS", "METHOD", "ASKED FOR", "  BODY", "  TOTAL", &legend]).style(BOLD);
    let table = Table::new(rows, widths)
        .header(header)
        .column_spacing(1)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(selected.map(|index| index - start));
    frame.render_stateful_widget(table, area, &mut state);
    if view.listed.is_empty() {
        let text =
            if view.filter.is_empty() { "No request has come yet." } else { "No request is as the filter asks." };
        let below = Rect { y: area.y.saturating_add(2).min(area.bottom().saturating_sub(1)), height: 1, ..area };
        frame.render_widget(Paragraph::new(Line::styled(text, DIM)), below);
    }
}

/// How long each part took, in proportion to the longest of all.
fn bar_line(parts: Parts, longest: u64, width: usize) -> Line<'static> {
    let lens = [parts.connect, parts.params, parts.wait, parts.answer];
    let mut spans = Vec::new();
    let (mut sum, mut drawn) = (0_u64, 0);
    for (len, (character, _, colour)) in lens.into_iter().zip(PARTS) {
        sum = sum.saturating_add(len);
        // By the sum, so that what is rounded does not add up.
        let end = ((sum as f64 / longest as f64) * width as f64).round() as usize;
        let end = end.min(width);
        if end > drawn {
            spans.push(Span::styled(character.repeat(end - drawn), Style::new().fg(colour)));
            drawn = end;
        }
    }
    if drawn == 0 {
        spans.push(Span::styled("·", DIM));
    }
    Line::from(spans)
}

fn draw_request(frame: &mut Frame<'_>, view: &mut View, area: Rect) {
    let Some((request, down)) = view.opened() else {
        frame.render_widget(Paragraph::new("This request is no longer kept."), area);
        return;
    };
    let lines = wrapped(request_lines(&request, view.now, area.width.into()), area.width.into());
    // No further than that the last line is at the bottom.
    let most = lines.len().saturating_sub(area.height.into());
    let down = usize::from(down).min(most);
    if let Page::Request(_, kept) = &mut view.page {
        *kept = u16::try_from(down).unwrap_or(u16::MAX);
    }
    let visible: Vec<_> = lines.into_iter().skip(down).take(area.height.into()).collect();
    frame.render_widget(Paragraph::new(visible), area);
}

/// Lines that are no wider, each as many as it takes. What goes on is not indented, so that it can be told from what begins.
fn wrapped(lines: Vec<Line<'_>>, width: usize) -> Vec<Line<'static>> {
    let mut narrow = Vec::with_capacity(lines.len());
    for line in lines {
        let (mut spans, mut used) = (Vec::new(), 0);
        for span in &line.spans {
            let style = line.style.patch(span.style);
            let mut text = String::new();
            for character in span.content.chars() {
                let len = Span::raw(&*character.encode_utf8(&mut [0; 4])).width();
                if used + len > width && used > 0 {
                    spans.push(Span::styled(std::mem::take(&mut text), style));
                    narrow.push(Line::from(std::mem::take(&mut spans)));
                    used = 0;
                }
                text.push(character);
                used += len;
            }
            spans.push(Span::styled(text, style));
        }
        narrow.push(Line::from(spans));
    }
    narrow
}

fn request_lines(request: &Request, now: u64, width: usize) -> Vec<Line<'static>> {
    let (method, uri) = request.target();
    let parts = request.parts(now);
    let title = |text: &str| Line::styled(text.to_owned(), BOLD);
    let mut lines = vec![
        Line::from(vec![Span::styled(format!("{} {method} ", request.outcome()), BOLD), Span::raw(uri)]),
        Line::raw(format!(
            "request {} ({}), id {} on connection {}, from {} to {}, begun {}",
            request.number,
            request.role.map_or_else(|| "no role".into(), gatespan::recording::role_name),
            request.id,
            request.connection,
            text(request.from.as_bytes()),
            text(request.to.as_bytes()),
            moment(request.times.begun)
        )),
        bar_line(parts, parts.total().max(1), width.saturating_sub(1).min(76)),
        Line::from(
            [parts.connect, parts.params, parts.wait, parts.answer]
                .into_iter()
                .zip(PARTS)
                .flat_map(|(len, (character, name, colour))| {
                    [
                        Span::styled(character, Style::new().fg(colour)),
                        Span::raw(format!(" {name} {}   ", duration(len))),
                    ]
                })
                .chain([Span::raw(format!("total {}", duration(parts.total())))])
                .collect::<Vec<_>>(),
        ),
    ];
    let mut ends = Vec::new();
    if let Some(end) = request.end {
        ends.push(format!(
            "ended: {}, application status {}",
            gatespan::recording::status_name(end.protocol_status),
            end.application_status
        ));
    }
    if request.is_aborted {
        ends.push("the web server gave it up".into());
    }
    if let Some(why) = &request.why {
        ends.push(format!("cut: {}", text(why.as_bytes())));
    }
    if !ends.is_empty() {
        lines.push(Line::raw(ends.join("; ")));
    }
    if !request.findings.is_empty() {
        lines.extend([Line::default(), title("Findings")]);
        lines.extend(
            request.findings.iter().map(|found| Line::styled(format!("  {}: {}", clause(found), found.text), RED)),
        );
    }
    lines.extend([Line::default(), title("Variables")]);
    for (name, value) in request.variables() {
        lines.push(Line::from(vec![Span::styled(format!("  {} = ", text(name)), DIM), Span::raw(text(value))]));
    }
    if request.params.is_cut() {
        lines.push(Line::styled("  … and more that is not kept here", DIM));
    }
    for (name, kept) in [
        ("Request body", &request.stdin),
        ("Response head", &request.head),
        ("Response body", &request.body),
        ("Errors", &request.stderr),
    ] {
        if kept.len > 0 {
            lines.extend([Line::default(), title(&format!("{name}, {}", size(kept.len)))]);
            lines.extend(kept_lines(kept));
        }
    }
    lines
}

fn kept_lines(kept: &Kept) -> Vec<Line<'static>> {
    if kept.is_masked && kept.bytes.iter().all(|byte| *byte == b'*') {
        return vec![Line::styled("  masked: --show bodies has it recorded and shown", DIM)];
    }
    let mut lines: Vec<_> = kept
        .bytes
        .split(|byte| *byte == b'\n')
        .map(|line| Line::raw(format!("  {}", text(line.strip_suffix(b"\r").unwrap_or(line)))))
        .collect();
    if kept.bytes.ends_with(b"\n") {
        lines.pop();
    }
    if kept.is_cut() {
        lines.push(Line::styled(format!("  … {} more", size(kept.len - kept.bytes.len() as u64)), DIM));
    }
    lines
}

fn draw_messages(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let mut lines: Vec<Line<'_>> = view.messages.iter().map(|message| Line::raw(message.as_str())).collect();
    if !view.loose.is_empty() {
        lines.push(Line::styled("Findings that belong to no request", BOLD));
        lines.extend(view.loose.iter().map(|found| Line::raw(found.as_str())));
    }
    if lines.is_empty() {
        lines.push(Line::styled("There are no messages.", DIM));
    }
    // The newest at the bottom.
    let lines = wrapped(lines, area.width.into());
    let down = lines.len().saturating_sub(area.height.into());
    frame.render_widget(Paragraph::new(lines.into_iter().skip(down).collect::<Vec<_>>()), area);
}

const HELP: &str = "\
Each line is a request, the newest first. Those that run are bold and on top.

  BEGUN    when, UTC
  STATUS   of the response, or what there is instead: cut, none, OVERLOADED;
           with ! something is wrong, which opening the request shows
  BODY     bytes of the response's body so far
  TOTAL    from the making of the connection to the end of the request, or from
           its first byte where the connection was there before
  bar      c connect     up to the request's first byte, if the first there
           p params      up to the last variable
           w first byte  up to the first byte of the answer
           b last byte   up to its end

  ↑ ↓ PgUp PgDn Home End  select       Enter  open the request
  /      filter by words of method, path, status, host or address; ! has findings
  Esc    clear the filter              Space  hold what is shown
  m      messages                      q, Ctrl-C  end: once to finish what runs

Cookies, authorization and bodies are masked unless --show names them.";

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;

    use super::super::tests::{press, view};
    use super::*;

    /// The screen as text, of that size.
    fn screen(view: &mut View, (width, height): (u16, u16)) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        view.size = Rect::new(0, 0, width, height);
        terminal.draw(|frame| draw(frame, view)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_list_on_a_small_screen_has_all_its_columns() {
        let screen = screen(&mut view(30), (80, 24));
        assert!(screen.contains("0 running, 30 over"), "{screen}");
        for part in ["BEGUN", "STATUS", "METHOD", "ASKED FOR", "BODY", "TOTAL", "TO 2.0 ms", "/path?number=30"] {
            assert!(screen.contains(part), "{part} in\n{screen}");
        }
    }

    #[test]
    fn any_size_and_any_page_can_be_drawn() {
        for size in [(1, 1), (3, 2), (10, 4), (20, 6), (40, 10), (80, 24), (300, 100)] {
            let mut view = view(5);
            screen(&mut view, size);
            for key in
                [KeyCode::End, KeyCode::Enter, KeyCode::End, KeyCode::Char('q'), KeyCode::Char('?'), KeyCode::Char('q')]
            {
                press(&mut view, key);
                screen(&mut view, size);
            }
            press(&mut view, KeyCode::Char('m'));
            view.messages = vec!["a message".repeat(50)];
            screen(&mut view, size);
        }
    }

    #[test]
    fn a_bar_is_as_long_as_its_parts_together() {
        let parts = Parts { connect: 10, params: 10, wait: 60, answer: 20 };
        let text = |longest, width| bar_line(parts, longest, width).to_string();
        assert_eq!(text(100, 10), "cpwwwwwwbb");
        assert_eq!(text(200, 10), "cwwwb");
        assert_eq!(text(1_000_000, 10), "·");
    }

    #[test]
    fn an_opened_request_shows_what_is_known_of_it() {
        let mut view = view(1);
        press(&mut view, KeyCode::Enter);
        let screen = screen(&mut view, (80, 40));
        for part in
            ["200 GET /path?number=1", "HTTP_HOST = example.org", "Response body, 14 B", "Hello, world!", "ended: "]
        {
            assert!(screen.contains(part), "{part} in\n{screen}");
        }
    }
}
