"""The page of lesson 42 in a real browser: headless Chromium, driven by Playwright. Skipped with one line where either is missing.
MINIAI_SHOTS=nbs/images writes the screenshots that the lesson shows."""
import io,json,os,re,shutil,threading,time
from importlib.util import find_spec
import numpy as np,pytest
from PIL import Image
from miniai.app import EditSession,PageServer,Sessions,edit_page,grow_mask,safe_app
from miniai.data import Scene,Thing,draw_scenes
from miniai.segmentation import load_segmenter
from miniai.stable import StableDiffusion
from test_app import bomb,on_object,png

chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
missing = next((what for what,there in (('gradio', find_spec('gradio')), ('playwright', find_spec('playwright')), ('Chromium', chromium)) if not there), None)
if missing: pytest.skip(f'the browser test needs {missing}', allow_module_level=True)
pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::PIL.Image.DecompressionBombWarning')

def until(f, seconds=30):
    "Wait until `f()` is true."
    end = time.monotonic()+seconds
    while not f():
        assert time.monotonic()<end, f'waited {seconds} seconds in vain'
        time.sleep(.02)

@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        with_it = p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'])
        yield with_it
        with_it.close()

@pytest.fixture(scope='module')
def parts(): return StableDiffusion.load(),load_segmenter()

@pytest.fixture(scope='module')
def served(parts):
    sessions = Sessions(lambda: EditSession(*parts))
    with PageServer(safe_app(edit_page(sessions))) as server: yield server,sessions

class User:
    "Somebody with a browser window of her own."
    def __init__(self, browser, server, sessions, **kw):
        self.context = browser.new_context(viewport=dict(width=1240, height=1000), accept_downloads=True, **kw)
        self.page,self.hosts,self.errors = self.context.new_page(),set(),[]
        self.page.set_default_timeout(30_000)
        self.page.on('request', self.note)
        self.page.on('console', lambda m: self.errors.append(m.text) if m.type=='error' else None)
        self.page.on('pageerror', lambda e: self.errors.append(str(e)))
        self.page.goto(server.url)
        self.page.wait_for_selector('#open')
        self.sessions = sessions

    def note(self, request):
        "The hosts that are asked, and the name of the session, as the page tells it to the server."
        self.hosts.add(request.url.split('/')[2] if request.url.startswith('http') else '')
        if request.url.endswith('/queue/join?'): self.name = json.loads(request.post_data)['session_hash']

    @property
    def session(self): return self.sessions.found[self.name]

    def said(self, text):
        "Wait until the page says it."
        self.page.wait_for_function("t => document.querySelector('#said textarea').value.includes(t)", arg=text)

    def open(self, data, said=None):
        self.page.set_input_files('input[type=file]', dict(name='a.png', mimeType='image/png', buffer=data))
        self.said(said) if said else self.page.wait_for_selector('#image img')

    def click(self, x, y):
        "Click on a pixel of the image, wherever and however large it is shown; wait for the mask of so many clicks."
        h,w = self.session.state.image.shape[:2]
        n,box = len(self.session.state.points),self.page.locator('#image img').bounding_box()
        k = min(box['width']/w, box['height']/h)                      # the image may have empty margins in its element
        left,top = (box['width']-k*w)/2,(box['height']-k*h)/2
        self.page.locator('#image img').click(position=dict(x=left+(x+.5)*k, y=top+(y+.5)*k))
        self.said(f'{n+1} click')
        assert len(self.session.state.points)==n+1

    def draw(self, button, prompt, seed=None):
        old = self.session.state.edited
        if seed is not None:
            more = self.page.get_by_role('button', name='More')
            more.click()
            self.page.locator('#seed input').fill(str(seed))
            self.page.locator('#seed input').press('Tab')
            more.click()
        self.page.fill('#prompt textarea', prompt)
        self.page.click(button)
        until(lambda: self.session.state.edited is not old)
        self.page.wait_for_function("t => document.querySelector('#command textarea').value==t", arg=self.session.state.edited.command)
        self.page.wait_for_selector('#result img')

    def shown(self, name):
        "The image that the page shows, as it came from the server."
        url = self.page.locator(f'#{name} img').get_attribute('src')
        return np.array(Image.open(io.BytesIO(self.page.request.get(url).body())).convert('RGB'))

    def shot(self, name):
        if os.environ.get('MINIAI_SHOTS'): self.page.screenshot(path=f"{os.environ['MINIAI_SHOTS']}/{name}.png", full_page=True)

@pytest.fixture
def user(browser, served):
    u = User(browser, *served)
    yield u
    u.context.close()

@pytest.fixture(scope='module')
def image(): return draw_scenes([Scene((Thing('large', 'red', 'heart'),), '', 'white')], 128, seed=1)[0].permute(1, 2, 0).numpy()

def test_click_draw_download_undo(user, image, served):
    user.open(png(image))
    assert user.shown('image').shape==(512,512,3) and (user.shown('image')[::4,::4]==image).all()
    x,y = (int(o.mean()) for o in np.nonzero(image[...,2]<100)[::-1])     # the middle of the heart
    user.click(x, y)
    s = user.session
    assert s.state.points==((x,y,1),) and s.mask[y,x]
    user.page.wait_for_selector('#mask img')
    shown = user.shown('mask')[::4,::4]
    assert (shown==np.where(s.mask[...,None], image, image//4)).all()
    user.page.get_by_label('takes away').check()
    user.click(3, 5)
    assert s.state.points[1]==(3,5,0)
    user.page.get_by_role('button', name='Undo').click()
    until(lambda: len(s.state.points)==1)
    user.page.get_by_label('adds').check()
    user.draw('#replace', 'a large blue ring on a white background', seed=2)
    e = s.state.edited
    assert (e.result[~e.region]==image[~e.region]).all() and (e.result!=image).any() and e.region[s.mask].all()
    assert (user.shown('result')[::4,::4]==e.result).all()
    assert re.fullmatch(r"miniai --init image.png --mask mask.png --paste \d+ --seed 2 .*'a large blue ring on a white background'", e.command)
    user.page.wait_for_selector('#files a')
    assert (e.region==grow_mask(s.mask, 16)).all()                   # an eighth of the side, as the page begins
    user.shot('editor')
    got = {}
    for name in ('image', 'mask', 'result'):
        with user.page.expect_download() as d: user.page.locator(f'#files a[download="{name}.png"]').first.click()
        got[name] = np.array(Image.open(d.value.path()))
    assert (got['image']==image).all() and (got['result']==e.result).all()
    assert got['mask'].shape==image.shape[:2] and ((got['mask']>127)==e.region).all() and set(np.unique(got['mask']))=={0,255}
    user.draw('#rest', 'a large red heart on a black background')
    e = s.state.edited
    assert (e.region==~s.mask).all() and (e.result[s.mask]==image[s.mask]).all()
    user.shot('editor_rest')
    user.page.get_by_role('button', name='Go on with the result').click()
    until(lambda: s.state.image is e.result and not s.state.points)
    assert user.hosts<={f'127.0.0.1:{served[0].port}', ''} and not user.errors

def test_a_wide_image_is_clicked_where_the_pixel_is(user):
    "Every pixel has a colour of its own, and the shown image has margins, or is reduced."
    for w,h in ((90,40), (1500,700)):
        y,x = np.mgrid[:h,:w]
        image = np.stack([x*255//w, y*255//h, (x+y)%256], -1).astype(np.uint8)
        user.open(png(image))
        until(lambda: user.session.state.image.shape==image.shape)
        user.page.wait_for_function("r => { const i = document.querySelector('#image img'); return i.complete && Math.abs(i.naturalWidth/i.naturalHeight-r)<.02 }", arg=w/h)
        for px,py in ((2,3), (w-3,h//2), (w//3,h-2)):
            user.click(px, py)
            cx,cy,_ = user.session.state.points[-1]
            assert abs(cx-px)<=max(1, w//300) and abs(cy-py)<=max(1, w//300), (w, h, px, py, cx, cy)

def test_what_is_no_image_is_refused(user, image):
    user.open(b'no image at all', 'expected an image')
    user.open(bomb(10_000, 10_000), 'at most 16 megapixels, got 10,000 x 10,000')
    user.page.click('#replace')
    user.said('open one first')
    user.open(png(image))
    user.page.fill('#prompt textarea', 'a star')
    user.page.click('#replace')
    user.said('click an object first')
    user.click(*on_object(image))
    user.page.fill('#prompt textarea', ' ')
    user.page.click('#replace')
    user.said('prompt: expected words')
    user.page.fill('#prompt textarea', '<img src=x onerror="document.title=1"> star')
    user.page.click('#replace')
    user.said('the vocabulary lacks')                                 # shown as words, never run
    assert user.page.title()=='miniai' and not user.page.locator('#said img, #command img').count()

def test_two_users_at_once(browser, served, image):
    server,sessions = served
    a,b = User(browser, server, sessions),None
    try:
        a.open(png(image))
        x,y = on_object(image)
        a.click(x, y)
        b = User(browser, server, sessions)
        assert not b.page.locator('#image img').count()
        other = image[::-1].copy()
        b.open(png(other))
        b.click(*on_object(other))
        assert b.session is not a.session and (b.session.state.image==other).all()
        assert a.session.state.points==((x,y,1),) and (a.shown('image').shape==b.shown('image').shape)
        for u,words in ((a, 'a red star'), (b, 'a green heart')):     # both ask before either has got it
            u.page.fill('#prompt textarea', words)
            u.page.click('#replace')
        until(lambda: a.session.state.edited and b.session.state.edited, 120)  # one after the other
        for u,words,x in ((a, 'red star', image), (b, 'green heart', other)):
            e = u.session.state.edited
            assert words in e.command and (e.result[~e.region]==x[~e.region]).all()
    finally:
        for u in (a, b):
            if u: u.context.close()
    until(lambda: a.name not in sessions and b.name not in sessions)  # both are forgotten

class Slow:
    "A pipeline that never ends, unless it is stopped."
    size = 64
    def __init__(self): self.begun,self.ended = threading.Event(),threading.Event()
    def __call__(self, cb, **kw):
        self.begun.set()
        try:
            for i in range(3_000):
                cb(i, None, None)
                self.ended.wait(.01)
        finally: self.ended.set()

def test_a_closed_tab_ends_the_work(browser, parts, image):
    slow = Slow()
    sessions = Sessions(lambda: EditSession(slow, parts[1]))
    with PageServer(safe_app(edit_page(sessions))) as server:
        u = User(browser, server, sessions)
        u.open(png(image))
        u.click(*on_object(image))
        u.page.fill('#prompt textarea', 'a star')
        u.page.click('#replace')
        until(slow.begun.is_set)
        u.page.get_by_role('button', name='Stop').click()             # first by its button
        until(slow.ended.is_set)
        u.said('stopped')
        slow.begun.clear(), slow.ended.clear()
        u.page.click('#replace')
        until(slow.begun.is_set)
        assert not slow.ended.is_set()
        u.context.close()                                             # then by leaving
        until(slow.ended.is_set)
        until(lambda: len(sessions)==0)
        assert server.thread.is_alive()
        again = User(browser, server, sessions)                       # and others are served
        again.open(png(image))
        again.context.close()
