// The forms of an answer, as links that the browser saves under the names that the service gives them.
import * as api from "./api.js";
import { el } from "./dom.js";

const FORMS = {
  json: ["JSON", "everything, in millimetres"],
  nifti: ["NIfTI", "label map"],
  seg: ["DICOM SEG", "masks for a PACS"],
  sr: ["DICOM SR", "measurements for a PACS"],
  rtstruct: ["RTSTRUCT", "contours for planning"],
  preview: ["Picture", "PNG"],
  luna16: ["LUNA16", "CSV"],
  markups: ["Markups", "boxes for 3D Slicer"],
};

export function downloads(job) {
  const links = job.outputs.map((form) => {
    const [name, about] = FORMS[form] ?? [form, ""];
    return el("li", {},
      el("a", { href: api.resultPath(job.job_id, form), download: true, "data-form": form },
        el("strong", { text: name }), el("small", { text: about })));
  });
  const refused = Object.entries(job.refused ?? {}).map(([form, why]) => el("li", { "data-refused": form },
    el("strong", { text: (FORMS[form] ?? [form])[0] }), el("small", { text: ` ${why.detail} ${why.remedy}` })));
  return el("section", { class: "downloads", "aria-labelledby": "downloads-title" },
    el("h3", { id: "downloads-title", text: "Download" }), el("ul", {}, ...links, ...refused));
}
