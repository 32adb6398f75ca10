//! The live view: requests that run and requests that are over, on a terminal. This file is what it knows and what keys do to that.

mod draw;
mod terminal;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use rustix::process::{Signal, getpid, kill_process};

use super::following::{Following, News, Request};
use super::recorder::{Watched, now};
pub(super) use terminal::Screen;

/// How many requests that are over are kept.
const MAX_KEPT: usize = 1000;

/// How many findings that belong to no request are kept.
const MAX_LOOSE: usize = 200;

/// How often the screen is drawn at most.
const FRAME: Duration = Duration::from_millis(100);

/// What the view is told once.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) file: String,
}

/// Shows what passes until the tap ends, or the terminal can't be used.
pub(super) fn run(watched: &Receiver<Watched>, screen: &Arc<Screen>, about: About) {
    let mut view = View::new(about);
    let shown = screen.show(|terminal| {
        loop {
            let until = Instant::now() + FRAME;
            loop {
                match watched.recv_timeout(until.saturating_duration_since(Instant::now()).min(FRAME / 4)) {
                    Ok(watched) => view.receive(&watched),
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                    Err(RecvTimeoutError::Timeout) => {}
                }
                let mut is_changed = false;
                while event::poll(Duration::ZERO)? {
                    is_changed |= view.event(&event::read()?);
                }
                if is_changed || Instant::now() >= until {
                    break;
                }
            }
            view.messages = screen.messages();
            view.size = ratatui::layout::Rect::from((ratatui::layout::Position::ORIGIN, terminal.size()?));
            view.refresh();
            if !screen.draw(|| terminal.draw(|frame| draw::draw(frame, &mut view)).map(drop))? {
                return Ok(());
            }
        }
    });
    if let Err(error) = shown {
        tracing::error!("the view could not be shown, and the tap goes on without it: {error}");
    }
    // Whatever comes is still taken, so that nobody waits.
    watched.iter().for_each(drop);
}

/// What the view knows.
struct View {
    about: About,
    following: Following,
    over: VecDeque<Rc<Request>>,
    /// Findings that belong to no request, the newest last.
    loose: VecDeque<String>,
    missed: u64,
    /// What is listed, the newest first; stands still while the view is paused.
    listed: Vec<Rc<Request>>,
    /// The time up to which what runs has run.
    now: u64,
    is_paused: bool,
    filter: String,
    is_filtering: bool,
    /// Which request is selected, by its number.
    selected: Option<u64>,
    page: Page,
    messages: Vec<String>,
    size: ratatui::layout::Rect,
    /// When requests were over in the last seconds.
    rate: VecDeque<(Instant, u64)>,
    total: u64,
}

/// What fills the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Page {
    List,
    /// A request, by its number, and how far down.
    Request(u64, u16),
    Help,
    Messages,
}

impl View {
    fn new(about: About) -> Self {
        Self {
            about,
            following: Following::new(),
            over: VecDeque::new(),
            loose: VecDeque::new(),
            missed: 0,
            listed: Vec::new(),
            now: now().0,
            is_paused: false,
            filter: String::new(),
            is_filtering: false,
            selected: None,
            page: Page::List,
            messages: Vec::new(),
            size: ratatui::layout::Rect::default(),
            rate: VecDeque::new(),
            total: 0,
        }
    }

    fn receive(&mut self, watched: &Watched) {
        let mut news = Vec::new();
        self.following.receive(watched, &mut news);
        for news in news {
            match news {
                News::Over(request) => {
                    self.total += 1;
                    self.over.push_front(Rc::new(*request));
                    self.over.truncate(MAX_KEPT);
                }
                News::Found { connection, time, found } => {
                    let clause = super::following::clause(&found);
                    let moment = super::lines::moment(time);
                    self.loose.push_back(format!("{moment} connection {connection}: {clause}: {}", found.text));
                    if self.loose.len() > MAX_LOOSE {
                        self.loose.pop_front();
                    }
                }
                News::Missed => self.missed += 1,
            }
        }
    }

    /// Brings what is listed up to date.
    fn refresh(&mut self) {
        self.rate.push_back((Instant::now(), self.total));
        while self.rate.len() > 2 && self.rate.front().is_some_and(|(at, _)| at.elapsed() > Duration::from_secs(5)) {
            self.rate.pop_front();
        }
        if self.is_paused {
            return;
        }
        self.now = now().0;
        let mut running: Vec<&Request> = self.following.running().filter(|request| self.is_wanted(request)).collect();
        running.sort_by_key(|request| std::cmp::Reverse(request.number));
        // As many as are kept of the others: each is copied, since it still changes.
        let running = running.into_iter().take(MAX_KEPT).cloned().map(Rc::new);
        let over = self.over.iter().filter(|request| self.is_wanted(request)).cloned();
        self.listed = running.chain(over).collect();
        if self.index().is_none() {
            self.selected = None;
        }
    }

    /// Requests that were over in a second.
    fn per_second(&self) -> f64 {
        match (self.rate.front(), self.rate.back()) {
            (Some((first, before)), Some((last, after))) if *last > *first => {
                (after - before) as f64 / (*last - *first).as_secs_f64()
            }
            _ => 0.0,
        }
    }

    /// Whether every word of the filter is somewhere in what is listed of a request; `!` is whatever was found.
    fn is_wanted(&self, request: &Request) -> bool {
        if self.filter.is_empty() {
            return true;
        }
        let (method, uri) = request.target();
        let host = request.variable("HTTP_HOST").unwrap_or_default();
        let line = format!("{method} {uri} {} {host} {}", request.outcome(), request.from).to_lowercase();
        self.filter.to_lowercase().split_whitespace().all(|word| match word {
            "!" => !request.findings.is_empty() || request.why.is_some() || request.stderr.len > 0,
            word => line.contains(word),
        })
    }

    /// Where the selected request is in the list.
    fn index(&self) -> Option<usize> {
        let number = self.selected?;
        self.listed.iter().position(|request| request.number == number)
    }

    fn opened(&self) -> Option<(Rc<Request>, u16)> {
        let Page::Request(number, down) = self.page else { return None };
        let listed = self.listed.iter().chain(&self.over).find(|request| request.number == number);
        listed.map(|request| (request.clone(), down))
    }

    /// Takes a key; true when there is something else to see.
    fn event(&mut self, event: &Event) -> bool {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => {
                self.key(*key);
                true
            }
            Event::Resize(..) => true,
            _ => false,
        }
    }

    fn key(&mut self, key: KeyEvent) {
        if key.modifiers.contains(KeyModifiers::CONTROL) && matches!(key.code, KeyCode::Char('c' | 'd' | '\\')) {
            return end();
        }
        if self.is_filtering {
            return self.filter_key(key.code);
        }
        match (&mut self.page, key.code) {
            (Page::List, KeyCode::Char('q')) => end(),
            (Page::Help | Page::Messages, KeyCode::Char('q' | '?' | 'h' | 'm') | KeyCode::Esc | KeyCode::Enter) => {
                self.page = Page::List;
            }
            (
                Page::Request(..),
                KeyCode::Char('q') | KeyCode::Esc | KeyCode::Enter | KeyCode::Backspace | KeyCode::Left,
            ) => {
                self.page = Page::List;
            }
            (_, KeyCode::Char('?' | 'h')) => self.page = Page::Help,
            (_, KeyCode::Char('m')) => self.page = Page::Messages,
            (_, KeyCode::Char(' ')) => self.is_paused = !self.is_paused,
            (Page::Request(_, down), code) => {
                let page = self.size.height.saturating_sub(4);
                *down = match code {
                    KeyCode::Up | KeyCode::Char('k') => down.saturating_sub(1),
                    KeyCode::Down | KeyCode::Char('j') => down.saturating_add(1),
                    KeyCode::PageUp => down.saturating_sub(page),
                    KeyCode::PageDown => down.saturating_add(page),
                    KeyCode::Home | KeyCode::Char('g') => 0,
                    KeyCode::End | KeyCode::Char('G') => u16::MAX,
                    _ => *down,
                };
            }
            (Page::List, KeyCode::Char('/')) => self.is_filtering = true,
            (Page::List, KeyCode::Esc) => {
                self.filter.clear();
                self.selected = None;
            }
            (Page::List, KeyCode::Enter | KeyCode::Right) => {
                let request = self.listed.get(self.index().unwrap_or(0));
                if let Some(request) = request {
                    self.selected = Some(request.number);
                    self.page = Page::Request(request.number, 0);
                }
            }
            (Page::List, code) => self.move_selection(code),
            _ => {}
        }
    }

    fn filter_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_filtering = false,
            KeyCode::Esc => {
                self.is_filtering = false;
                self.filter.clear();
            }
            KeyCode::Backspace => _ = self.filter.pop(),
            // Nobody filters by more, and the line has an end.
            KeyCode::Char(character) if self.filter.len() < 100 => self.filter.push(character),
            _ => {}
        }
    }

    fn move_selection(&mut self, code: KeyCode) {
        let Some(last) = self.listed.len().checked_sub(1) else { return };
        let page = usize::from(self.size.height.saturating_sub(6));
        let index = match (self.index(), code) {
            (None, KeyCode::Up | KeyCode::Down | KeyCode::PageUp | KeyCode::PageDown) => 0,
            (None, KeyCode::Char('j' | 'k')) => 0,
            (Some(index), KeyCode::Up | KeyCode::Char('k')) => index.saturating_sub(1),
            (Some(index), KeyCode::Down | KeyCode::Char('j')) => index + 1,
            (Some(index), KeyCode::PageUp) => index.saturating_sub(page),
            (Some(index), KeyCode::PageDown) => index + page,
            (_, KeyCode::Home | KeyCode::Char('g')) => 0,
            (_, KeyCode::End | KeyCode::Char('G')) => last,
            _ => return,
        };
        self.selected = self.listed.get(index.min(last)).map(|request| request.number);
    }
}

/// Ends the process as somebody at a terminal does who presses Ctrl-C where there is no view: once to finish what runs, twice to stop at once.
fn end() {
    let _ = kill_process(getpid(), Signal::INT);
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::following::tests::example;
    use super::*;

    pub(super) fn view(requests: u64) -> View {
        let about =
            About { from: "fastcgi:/run/a.sock".into(), to: "fastcgi:/run/b.sock".into(), file: "gatespan.gsr".into() };
        let mut view = View::new(about);
        for _ in 0..requests {
            view.receive(&example(view.following.count() + 1));
        }
        view.refresh();
        view
    }

    pub(super) fn press(view: &mut View, code: KeyCode) {
        view.key(KeyEvent::new(code, KeyModifiers::NONE));
        view.refresh();
    }

    #[test]
    fn no_more_requests_are_kept_than_the_limit() {
        let view = view(MAX_KEPT as u64 + 10);
        assert_eq!((view.over.len(), view.listed.len()), (MAX_KEPT, MAX_KEPT));
        assert_eq!(view.listed[0].number, MAX_KEPT as u64 + 10);
    }

    #[test]
    fn a_filter_leaves_what_has_all_its_words() {
        let mut view = view(3);
        press(&mut view, KeyCode::Char('/'));
        for character in "get NUMBER=2".chars() {
            press(&mut view, KeyCode::Char(character));
        }
        assert_eq!(view.listed.iter().map(|request| request.number).collect::<Vec<_>>(), [2]);
        press(&mut view, KeyCode::Enter);
        press(&mut view, KeyCode::Esc);
        assert_eq!(view.listed.len(), 3);
        view.filter = "!".into();
        view.refresh();
        assert_eq!(view.listed.len(), 0);
    }

    #[test]
    fn a_pause_holds_the_list_and_what_passes_meanwhile_is_there_after_it() {
        let mut view = view(2);
        press(&mut view, KeyCode::Char(' '));
        view.receive(&example(view.following.count() + 1));
        view.refresh();
        assert_eq!(view.listed.len(), 2);
        press(&mut view, KeyCode::Char(' '));
        assert_eq!(view.listed.len(), 3);
    }

    #[test]
    fn the_selection_stays_with_its_request() {
        let mut view = view(3);
        press(&mut view, KeyCode::Down);
        press(&mut view, KeyCode::Down);
        assert_eq!(view.selected, Some(2));
        view.receive(&example(view.following.count() + 1));
        view.refresh();
        assert_eq!((view.selected, view.index()), (Some(2), Some(2)));
        press(&mut view, KeyCode::Enter);
        assert_eq!(view.page, Page::Request(2, 0));
        press(&mut view, KeyCode::Char('q'));
        assert_eq!(view.page, Page::List);
    }
}
