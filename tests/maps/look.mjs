// Opens pages in Chromium, one after the other, and answers with their state as JSON.
//
// Standard input: {modules, chromium, looks: [{url, screenshot, places: [[longitude, latitude], …]}]}
// Standard output: one answer per look: {points: [[x, y], …], errors: […], overlays: number}

import { createRequire } from "node:module";
import { readFileSync, writeFileSync } from "node:fs";

const SHOWN = 30_000;  // milliseconds until a page must have drawn its map
const order = JSON.parse(readFileSync(0, "utf8"));
const { chromium } = createRequire(`${order.modules}/`)("playwright-core");
const browser = await chromium.launch({
  executablePath: order.chromium,
  args: [
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
  ],
});
try {
  const answers = [];
  for (const look of order.looks) answers.push(await show(look));
  console.log(JSON.stringify(answers));
} finally {
  await browser.close();
}

async function show({ url, screenshot, places }) {
  const page = await browser.newPage({ viewport: { width: 1000, height: 800 } });
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("requestfailed", (request) => errors.push(`${request.url()} failed`));
  await page.goto(url);
  await until(page, () => errors.length || page.evaluate(drawn));
  writeFileSync(screenshot, await still(page));
  const points = errors.length ? [] : await page.evaluate(project, places);
  const overlays = await page.evaluate(() => document.querySelectorAll("canvas, .leaflet-layer, .leaflet-image-layer").length);
  await page.close();
  return { points, errors, overlays };
}

async function until(page, condition) {
  for (const end = Date.now() + SHOWN; Date.now() < end; await page.waitForTimeout(50)) {
    if (await condition()) return;
  }
  throw new Error(`${page.url()} drew no map within ${SHOWN} ms`);
}

// A picture without the animations at its beginning.
async function still(page) {
  let last = await page.screenshot();
  for (let tries = 0; tries < 40; tries++) {
    await page.waitForTimeout(400);
    const next = await page.screenshot();
    if (next.equals(last)) return next;
    last = next;
  }
  throw new Error(`${page.url()} does not stand still`);
}

// The next two run in the page, whose snippet leaves its map in `window.map`.

function drawn() {
  const { map } = window;
  if (!map) return false;
  return "project" in map && "areTilesLoaded" in map
    ? map.loaded() && map.areTilesLoaded()
    : document.images.length > 0 && [...document.images].every((image) => image.complete);
}

function project(places) {
  const { map } = window;
  const middle = map.getCenter().lng;
  return places.map(([lon, lat]) => {
    const near = lon + 360 * Math.round((middle - lon) / 360);
    const { x, y } = "areTilesLoaded" in map ? map.project([near, lat]) : map.latLngToContainerPoint([lat, near]);
    return [x, y];
  });
}
