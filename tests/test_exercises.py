"""The exercises of the course: solutions pass their checks, plausible wrong answers don't.

A wrong answer is a change of the solution, `(old, new)`, and each has another misconception behind it. The cells of an
exercise use what the chapter imports and exports and nothing else, so the lesson itself isn't run."""
import ast
import json
import re
from importlib import import_module
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")
NBS = Path(__file__).resolve().parent.parent/"nbs"

# {chapter: {check: [(text of the solution, what the wrong answer has in its place)]}}
WRONG = {
    "01_pconv": {
        "check_unfold": [("*w[0].numel()/m_sum", "/m_sum"),                # n_win forgotten
                         ("x.shape[1]*F.unfold(m", "F.unfold(m"),           # the channels not counted
                         ("(y + b[:, None])*(m_sum > 0)", "y + b[:, None]"),  # a bias where nothing is known
                         ("x.masked_fill(m == 0, 0)", "x*m")],              # NaN times 0 taken for 0
        "check_layers": [("if sides == 2 else", "if sides else"),           # one side at the border already slows it
                         ("-(-size//rim)", "size//rim"),                    # the last, partial step forgotten
                         ("if sides == 2 else 2*(k//2)", "")],              # a hole taken to close from one side only
        "check_faq": [("m.expand_as(x), torch.ones(1, x.shape[1], 3, 3)", "m, torch.ones(1, 1, 3, 3)"),  # D counts one channel
                      ("(conv(x*m) - zero)/d.clamp(min=1) + zero", "conv(x*m)/d.clamp(min=1)"),          # the bias divided too
                      ("torch.where(d > 0, (conv(x*m) - zero)/d.clamp(min=1) + zero, 0.)", "(conv(x*m) - zero)/d.clamp(min=1) + zero")],  # the bias in empty windows
    },
    "02_masks": {
        "check_depth": [("np.pad(known, 1)", "np.pad(known, 1, constant_values=True)"),   # beyond the border taken for known
                        ("for j in range(3)]", "for j in range(3) if 1 in (i, j)]"),       # no diagonal steps
                        ("d[~known] += 1", "d[~known] = 1")],                              # rings not counted
        "check_symmetries": [("(m, m.T)", "(m, m)"),                                       # turns alone
                             ("(m, m.T)", "(m, m[::-1, ::-1])"),                           # half a turn taken for a mirror
                             ("range(4)", "(0, 2)")],                                      # a half of the turns
        "check_pixel": [("7 - at % 8", "at % 8"),                                          # the lowest bit first
                        ("y*shape[1] + x", "x*shape[0] + y"),                              # column after column
                        ("y*shape[1] + x", "y*-(-shape[1]//8)*8 + x")],                    # each row begins a new byte
    },
    "04_unet": {
        "check_widths": [("(1, k), 2, (0, k//2)", "(1, k), 2, (0, 0)"),                    # the padding left out
                         ("(1, k), 2, (0, k//2)", "(1, 3), 2, (0, 1)"),                    # every window 3 wide
                         ("> 0).float()", "== k).float()")],                              # known only if all is known
        "check_masked_bn": [("n = m.sum()", "n = m.numel()"),                              # holes counted
                            ("((x - mean)**2*m)", "((x*m - mean)**2)"),                    # holes taken for zeros in the variance
                            (".sqrt()*m", ".sqrt()"),                                      # junk left in holes
                            ("m.sum()", "m.sum((1, 2, 3), keepdim=True)")],                # an image at a time, as layer norm
        "check_count": [("9*(a + b)*a", "9*b*a"),                                          # the skip's channels forgotten
                        ("2*sum(ch[2:])", "2*sum(ch[1:])"),                                # a batch norm in the first stage
                        ("norms + 3", "norms"),             # no bias at the end
                        ("min(width*2**i, 8*width)", "width*2**i")],                       # no widest stage
    },
    "05_fast": {
        "check_up3": [("W.flip(0, 1)", "W"),                                               # handing out taken for collecting
                      ("[1, 1, 0], [1, 1, 1], [0, 1, 1]", "[1, 1, 0], [0, 1, 0], [0, 1, 1]"),  # the middle reached by one tap only
                      ("padding=1", "padding=0")],                                        # the border not cut
        "check_three": [("F.pad(x, (1, 1)).diff()", "F.pad(x, (1, 1), mode='replicate').diff()"),  # beyond the border stands the border
                        ("y - a*d[..., :-1], y + c*d[..., 1:]", "y + c*d[..., 1:], y - a*d[..., :-1]"),  # even and odd swapped
                        ("y + c*d[..., 1:]", "y - c*d[..., 1:]")],                         # the sign of the next difference
        "check_kept": [("4*n + 4*n, 4*n + 4*n", "4*n, 4*n"),                               # the mask forgotten
                       ("4*n + 4*n, 4*n + 4*n", "12*n, 8*n"),                              # z kept beside its ReLU
                       ("4*n + 4*n, 4*n + 4*n", "2*n, 2*n")],                              # values counted, not bytes
    },
    "06_losses": {
        "check_hole_error": [("n = 3*", "n = "),                                           # three values per pixel forgotten
                             ("(total/n.clamp(min=1)).mean()", "total.sum()/n.sum()"),     # a mean over the batch's pixels
                             ("n.clamp(min=1)", "n"),                                      # 0/0 without a hole
                             ("n = 3*(1 - m).sum((1, 2, 3))", "n = torch.tensor(float(out[0].numel()))")],  # the paper's N
        "check_tv": [("near = lambda i, n: range(max(0, i - 1), min(n, i + 2))", "near = lambda i, n: [i]"),  # the hole not grown
                     ("if (a, b) in r", "if a < h and b < w"),                             # one neighbour in R is enough
                     ("total/(h*w)", "total/len(r)")],                                     # divided by R
        "check_style": [("/t[0].numel()", "/t[0, 0].numel()"),                              # the channels not divided by
                        ("'bchw,bdhw->bcd'", "'bchw,bdhw->cd'"),                           # the batch added up
                        (".abs().mean()", ".abs().sum()"),                                  # a sum over entries
                        ("t, t)", "t - t.mean((2, 3), keepdim=True), t)")],                 # a covariance
    },
    "07_objective": {
        "check_in_pieces": [("len(t)/len(images)*f(t)", "f(t)/len(images.split(n))"),       # all pieces alike
                            ("len(t)/len(images)*f(t)", "f(t)"),                            # a sum of means
                            ("images.split(n)", "images.chunk(n)")],                        # n pieces, not n images
        "check_best": [("truths.median(0).values, truths.mean(0)", "truths.mean(0), truths.median(0).values"),  # swapped
                       ("truths.median(0).values, truths.mean(0)", "truths.mean(0), truths.mean(0)"),          # the mean for both
                       ("truths.median(0).values, truths.mean(0)", "truths[0], truths[0]")],                   # one of them copied
        "check_rescaled": [("style_out=2, style_comp=2", "style_out=1, style_comp=1"),      # Gram taken for linear
                           ("w/k**", "w*k**"),                                              # the wrong way
                           (".get(t, 0)", ".get(t, 1)")],                                   # pixel terms scaled too
    },
    "08_networks": {
        "check_gated": [("F.elu(F.conv2d(x, w, b, padding=1))", "F.conv2d(x, w, b, padding=1)"),  # no activation
                        (".sigmoid()", ".tanh()"),                                         # a gate that changes signs
                        ("features*gate", "features + gate"),                              # the mask's information added
                        ("features*gate", "features*(1 - gate)")],                          # open where it should be shut
        "check_weights_of": [("2*k*k*c_in*c_out", "k*k*c_in*c_out"),                        # the gate's weights forgotten
                             ("2*k*k*c_in*c_out + c_out + 2*c_out", "2*(k*k*c_in*c_out + c_out) + 2*c_out"),  # a bias for the features
                             ("+ c_out + 2*c_out", "+ c_out")],                             # batch norm has none
        "check_fill": [("net(2*x - 1, m)/2 + .5", "net(x, m)"),                             # no change at all
                       ("net(2*x - 1, m)/2 + .5", "net(2*x - 1, m)"),                       # not changed back
                       ("/2 + .5", "/2"),                                                   # changed back by half
                       ("2*x - 1", "x - .5")],                                              # the width of the range forgotten
    },
    "09_weights": {
        "check_tensor": [("'little'", "'big'"),                                              # the highest byte first
                         ("data[end + begin:end + stop]", "data[begin:stop]"),               # offsets from the file's beginning
                         ("data[end + begin:end + stop]", "data[end - 8 + begin:end - 8 + stop]"),  # the length's own bytes forgotten
                         ('[about["dtype"]]', '["F32"]')],                                   # every number in 32 bits
        "check_gap": [("first - 10, -24", "first - 11, -24"),                                # 11 bits after the first
                      ("max(first - 10, -24)", "(first - 10)"),                              # no smallest number
                      ("2.**max(first - 10, -24)", "2.**-10")],                              # the same everywhere
        "check_came_back": [("torch.equal(stored(k, v), there[k])", "torch.allclose(v.float(), there[k].float(), rtol=2**-11)"),  # near taken for the same
                            (' and "running_" not in k', ""),                                # statistics rounded, too
                            ("v.half().float()", "v")],                                      # not rounded at all
    },
    "10_metrics": {
        "check_both": [("r*e**2", "(r*e)**2"),                                              # the share squared, too
                       ("r*e**2", "e**2/r"),                                                # a small hole taken for the worse picture
                       ("r*e**2", "r*e"),                                                   # decibels of the absolute error
                       ("math.log10(e**2)", "math.log10(e**2/r)")],                         # the hole's divided by its share once more
        "check_harmonic": [("mean_fill(img, m)", "img"),                                     # begun with what is under the hole
                           ("compose(img, near/4, m)", "near/4"),                            # known pixels averaged
                           ("range(500)", "range(1)"),                                       # one pass taken for the end
                           (", mode='replicate'", "")],                                      # zeros beyond the edge
        "check_bits": [("12*steps**2", "4*steps**2"),                                        # every error the largest
                       ("12*steps**2", "48*steps**2"),                                       # half a step wide
                       ("12*steps**2", "12*(steps + 1)**2"),                                 # values counted, not steps
                       ("12*steps**2", "12*steps")],                                         # the error not squared
    },
    "11_artifacts": {
        "check_fool": [("(1 - w)*rim", "(1 - w)*comp"),                                      # nothing changed
                       ("w*comp + (1 - w)*rim", "(1 - w)*comp + w*rim"),                     # the middle repaired, not the rim
                       ("- 1)/4", "- 1)/40"),                                                # so wide that the fault itself is mended
                       ("np.where(hole[..., None], w*comp + (1 - w)*rim, comp)", "cv2.GaussianBlur(comp, (0, 0), 3)")],  # known pixels blurred, too
        "check_largest": [("window**2//2", "(window//2)**2"),                                # half of the side, not of the pixels
                          ("window**2//2", "(window - 2)**2"),                               # a rim of one pixel taken to be enough
                          ("side if side % 2 else side - 1", "side")],                       # sides that no square with a middle has
        "check_chequers": [("board -= board.mean()", ""),                                    # the darkness of the fill counted
                           (".sum(0) % 2", "[1] % 2"),                                       # stripes taken for a board
                           ("abs(", "("),                                                    # its phase decides the sign
                           ("(comp - gt)", "comp")],                                         # the picture's own pattern counted
    },
    "12_intervals": {
        "check_rate": [("2*sum(", "sum("),                                                  # one direction only
                       ("sum(math.comb(n, i) for i in range(k + 1))", "math.comb(n, k)"),   # exactly k, not up to k
                       ("math.comb(n, i)", "1"),                                            # which seeds they are not counted
                       ("math.comb(n, i) for i in range(k + 1))/2**n", "1 for i in range(k + 1))/(n + 1)")],  # every number of minuses as likely
        "check_faces": [("(1.96*spread/mean)**2", "1.96*spread/mean"),                       # the error taken to fall with n, not its root
                        ("1.96*", ""),                                                      # one standard error
                        ("1.96*", "2*1.96*")],                                              # the whole interval as wide as the mean
        "check_first": [("!= OPEN", "== HOLDS"),                                            # one direction only
                        ("d[:n]", "d[n - 5:n]"),                                            # the last five for themselves
                        ("range(5, len(d) + 1)", "[len(d)]")],                              # one look, at the end
    },
    "13_step": {
        "check_by_hand": [("+ 1e-8", "+ 1e-5"),                                              # fastai's epsilon
                          ("if g is None: continue", "g = g or 0."),                          # no gradient taken for 0
                          ("(avg/(1 - .9**n))", "avg"),                                       # an average that begins with 0 taken as it is
                          ("p -= lr*wd*p", "g += wd*p")],                                     # the decay as a part of the gradient
        "check_still": [("stage.bn.eval()", "pass"),                                         # the statistics go on
                        ("p.requires_grad_(False).grad = None", "pass"),                     # eval mode taken to be enough
                        (".grad = None", ""),                                                # old gradients left behind
                        ("self.model.dec", "self.model.enc")],                               # the paper's half
        "check_part": [("pieces, world, -1, *batch.shape[1:])[:, rank]", "world, pieces, -1, *batch.shape[1:])[rank]"),  # shares first, pieces after
                       ("batch.reshape(pieces, world, -1, *batch.shape[1:])[:, rank]",       # every other face
                "batch[rank::world].reshape(pieces, -1, *batch.shape[1:])"),
                       ("[:, rank]", "[rank]")],                                             # a piece taken for a share
    },
    "14_learner": {
        "check_easier": [("not self.training or ", ""),                                       # validation changed, too
                         ("= masked_batch(gt, m)", "= (gt*m, m), self.yb"),                   # the loss's mask forgotten
                         ("= masked_batch(gt, m)", "= (self.xb[0], m), (gt, m)"),             # zeros left where it says known
                         (" or 2*self.epoch >= self.n_epoch", "")],                           # in every epoch
        "check_next": [("divmod(done, steps)", "(0, done)"),                                  # steps counted through
                       ("divmod(done, steps)", "(done//steps, done)"),                        # the step not within its epoch
                       ("seed, 0, epoch", "seed, 1, epoch"),                                  # validation's masks
                       ("mask_generator(seed, 0, epoch, step, 0)", "torch.Generator().manual_seed(seed)")],  # the beginning over again
        "check_worst": [("max(self.worst, *each)", "max(each)"),                              # the last batch alone
                        ("range(len(gt))", "range(0, len(gt), len(gt))"),                     # the first of each batch
                        ("hole_l1_error(out[i:i + 1], gt[i:i + 1], m[i:i + 1])", "hole_l1_error(out, gt, m)"),  # the worst batch
                        ("hole_l1_error(out[i:i + 1], gt[i:i + 1], m[i:i + 1])", "(out[i] - gt[i]).abs().mean()")],  # over known pixels, too
    },
    "15_critic": {
        "check_slopes": [("-torch.sigmoid(-d), -torch.sigmoid(d)", "-torch.sigmoid(d), -torch.sigmoid(-d)"),  # swapped
                         ("-torch.sigmoid(-d)", "torch.sigmoid(-d)"),                        # the inner derivative forgotten
                         ("-torch.sigmoid(-d), -torch.sigmoid(d)", "F.softplus(-d), -F.softplus(d)")],  # the losses themselves
        "check_rim": [("*hole_patches(1 - m, size)", ""),                                    # every patch of the hole
                      ("*hole_patches(1 - m, size)", "*(1 - hole_patches(1 - m, size))"),    # the inside
                      ("hole_patches(m, size)*", "")],                                       # every patch with a known pixel
        "check_handed": [("(out - out.detach())", "out"),                                    # the value moved
                         ("value.detach()", "value"),                                        # its own gradient as well
                         (".sum()", ".mean()")],                                             # divided by the number of pixels
    },
    "16_recipe": {
        "check_hours": [("total_epochs(recipe)", "recipe.phases[0].epochs"),                 # the first phase alone
                        ("-(-recipe.min_steps//batches)", "1"),                              # a small folder shown once
                        ("passes*batches", "max(batches, recipe.min_steps)"),                # a pass that is cut off
                        ("n//recipe.bs", "n/recipe.bs"),                                     # a part of a batch counted
                        ("*recipe.bs", "")],                                                 # batches taken for images
        "check_cost": [("uses_features(recipe) and phase.features", "uses_features(recipe)"),  # the phase not looked at
                       ("uses_features(recipe) and phase.features", "phase.features"),       # features that no term compares
                       ("features_reduce**2", "features_reduce"),                            # the side, not the pixels
                       ("passes = 5 if", "passes = 3*3 if"),                                 # three pictures there and back, weights and all
                       ("5 if recipe.features_own else 3", "5")],                            # the network's own picture, whatever the recipe says
        "check_rate": [("math.pi*t", "2*math.pi*t"),                                         # a whole cosine
                       ("(1 + math.cos(math.pi*t))/2", "math.cos(math.pi*t/2)"),             # a quarter of one
                       ("phase.lr_end + (phase.lr - phase.lr_end)*", "phase.lr*"),           # always down to 0
                       ("phase.schedule == 'constant'", "phase.lr_end == 0")],               # what ends at 0 taken for constant
    },
    "03_data": {
        "check_held_out": [('hash01(i.split("_")[0])', "hash01(i)"),                         # each photograph for itself
                           ('[i for i in ids if hash01(i.split("_")[0]) < fraction]', 'ids[:int(fraction*len(ids))]'),  # the first ones
                           ('[i for i in ids if hash01(i.split("_")[0]) < fraction]',       # a permutation of the people
                            'np.random.default_rng(0).choice(sorted({i.split("_")[0] for i in ids}), 60, replace=False).tolist()'),
                           ("< fraction", ">= fraction")],                                   # the sides swapped
        "check_order": [("[seed, epoch]", "seed + epoch"),                                  # a sum that collides
                        ("[seed, epoch]", "seed"),                                          # the same order every epoch
                        ("np.random.default_rng([seed, epoch])", "np.random")],              # the global generator
        "check_place": [("3*size*size", "size*size"),                                       # one channel
                        ("start + i*n", "i*n"),                                             # the header forgotten
                        ("3*size*size", "4*3*size*size")],                                  # floats
    },
    "17_training": {
        "check_falling": [(" - before", ""),                                                # counted from the run's beginning
                          (" + position.iteration/n_iter", ""),                             # a rate per epoch, not per batch
                          ("/phase.epochs", "/total_epochs(recipe)")],                      # the run's length for the phase's
        "check_begins": [("p.share for", "p.epochs for"),                                   # epochs although there is a budget
                         ("shares.cumsum() - shares", "shares.cumsum()"),                   # ends taken for beginnings
                         ("60*minutes*before/shares.sum()", "60*before")],                  # shares taken for minutes
        "check_mix": [("average_decay(ema, t)", "ema"),                                     # a constant decay
                      ("[1.]", "[0.]"),                                                     # an average that begins at 0, as Adam's
                      ("[d*p for p in parts] + [1 - d]", "[(1 - d)*p for p in parts] + [d]")],  # d taken for the new weights' part
    },
    "18_pairs": {
        "check_missed": [("return faces*never", "return max(0, faces - n)"),                # draws taken for dealing
                         ("faces*never", "never"),                                          # the probability, not how many
                         ("faces*never", "faces*(1 - never)")],                             # those that are asked
        "check_stale": [("if j in masks", "if i in masks"),                                 # a pair's number for its mask's
                        (" if j in masks", ""),                                             # another list, so everything again
                        ("[i for i, j in enumerate(pairs.mask_at) if j in masks]", "sorted(pairs.mask_at.index(j) for j in masks)")],  # a mask taken to occur once
        "check_untouched": [("[*trained, *chosen]", "trained"),                             # choosing taken for harmless
                            ("all(", "any("),                                               # one fresh picture taken for enough
                            ("{stem(o) for o in [*trained, *chosen]}\n    return all(stem(o)", "{Path(o).name for o in [*trained, *chosen]}\n    return all(Path(o).name")],  # a file for a picture
    },
    "19_evaluation": {
        "check_between": [("(telea_fill(inp, m) + biharmonic_fill(inp, m))/2", "biharmonic_fill(inp, m)"),  # better on average taken for always
                          ("(telea_fill(inp, m) + biharmonic_fill(inp, m))/2",
                           "torch.where(torch.rand(m.shape, generator=torch.Generator().manual_seed(0)) < .5, telea_fill(inp, m), biharmonic_fill(inp, m))"),  # mixed, not averaged
                          ("biharmonic_fill(inp, m))/2", "biharmonic_fill(inp, 1 - m))/2")],  # the mask the other way round
        "check_grey": [('sha256_of(f"grey {level:g}".encode())', 'sha256_of(b"grey")'),     # a hash of the name alone
                       ('f"grey {level:g}".encode()', 'str(fill).encode()'),                # an address in memory
                       ('f"grey{level:g}"', '"grey"')],                                     # one name for all
        "check_sure": [("for o in v) > 0", "for o in v[:1]) > 0"),                          # one end of the interval
                       ("1 if ABOUT[key][2] else -1", "1"),                                 # more taken for better
                       ('r["border"] == "any" and ', ""),                                   # parts of the bucket mixed in
                       ("[key][1:]", "[key][:1]")],                                         # the mean for the interval
    },
    "20_windows": {
        "check_thickness": [("cv2.erode(hole, square)", "cv2.erode(hole, square, borderType=cv2.BORDER_CONSTANT, borderValue=0)"),  # beyond the picture all is known
                            ("np.ones((3, 3), np.uint8)", "np.uint8([[0, 1, 0], [1, 1, 1], [0, 1, 0]])"),  # no diagonal neighbours
                            ("2*rounds - 1", "2*rounds")],                                  # the middle counted twice
        "check_shrunk": [("total/share.clip(1/s**2)", "total"),                             # a mean over all pixels
                         ("share >= 0.5", "share > 0"),                                     # known if anything is
                         ("share >= 0.5", "share == 1"),                                    # known only if all is
                         ("np.where(k > 0, a, 0)", "a*k")],                                 # NaN times 0 taken for 0
        "check_side": [("-(-4*thick//size)", "4*thick//size"),                              # a window that is too small
                       ("wanted if wanted < longest else ", ""),                            # the whole photo always
                       ("max(fits*-(-longest//fits), size)", "wanted"),                     # a window larger than the photo
                       ("fits*-(-longest//fits)", "longest"),                               # squares that don't come out even
                       ("max(shape)", "min(shape)"),                                        # a window that the shorter side fills
                       ("max(fits*-(-longest//fits), size)", "fits*-(-longest//fits)")],    # a small photo enlarged
    },
    "21_inpainting": {
        "check_mend": [('"white"', '"black"'),                                              # the polarity the other way round
                       ("np.isnan(scan).any(-1)", "np.isnan(scan).all(-1)"),                # half known taken for known
                       ("np.isnan(scan).any(-1)", "(np.nan_to_num(scan) == 0).any(-1)")],   # black taken for damage
        "check_shared": [("constant_values=1", "constant_values=0"),                        # outside taken for hole, as in a window
                         ("(k.reshape(len(k)//8, 8, -1, 8) == 0).any((1, 3))", "(k[::8, ::8] == 0)"),  # one pixel for its block
                         ("    blocks = (k.reshape(len(k)//8, 8, -1, 8) == 0).any((1, 3))\n    return blocks.repeat(8, 0).repeat(8, 1)[:h, :w]",
                          "    return cv2.dilate(1 - m, np.ones((15, 15), np.uint8)) > 0")],  # near taken for in one block
        "check_clashes": [(".casefold()", ""),                                              # upper and lower case told apart
                          ("n if n.suffix.lower() in FORMATS else ", ""),                   # all kinds become PNG
                          ("n if n.suffix.lower() in FORMATS else n.with_suffix(\".png\")", "n")],  # no kind becomes PNG
    },
    "22_sparse": {
        "check_crowd": [("count_include_pad=False", "count_include_pad=True"),              # outside counted as known
                        ("from_numpy(hole)", "from_numpy(~hole)"),                          # the known share
                        ("side, stride=1, padding=side//2", "2*side + 1, stride=1, padding=side")],  # the width taken for the reach
        "check_off": [("n_win/m_sum*m_sum**0.5", "n_win/m_sum"),                            # the factor alone
                      ("n_win/m_sum*m_sum**0.5", "n_win"),                                  # chances that add up without cancelling
                      ("n_win/m_sum*m_sum**0.5", "m_sum**0.5"),                             # the factor forgotten
                      ("n_win/m_sum*m_sum**0.5", "n_win**0.5")],                            # all windows alike
    },
    "23_large_central": {
        "check_prefers": [("np.nanmean(strangers, 1)", "np.nanmean(r, 1)"),                 # its own half among the strangers
                          ("np.nanmean(strangers, 1)", "np.nanmean(strangers, 0)"),         # others' fills for others' halves
                          ("np.nanmean(strangers, 1)", "np.nan_to_num(strangers).mean(1)")],  # what can't be compared taken for 0
        "check_tinted": [("((inp - average)*m).sum((2, 3), keepdim=True)/known", "(inp - average).mean((2, 3), keepdim=True)"),  # zeros of the hole counted
                         ("((inp - average)*m).sum((2, 3), keepdim=True)/known",
                          "inp.sum((2, 3), keepdim=True)/known - average.mean((1, 2), keepdim=True)"),  # known pixels against a whole face
                         ("sum((2, 3), keepdim=True)/known\n    return", "sum((1, 2, 3), keepdim=True)/(3*known)\n    return"),  # light without a colour
                         ("sum((2, 3), keepdim=True)/known\n    return", "sum((0, 2, 3), keepdim=True)/known.sum()\n    return inp*0 +")],  # one light for all pictures
    },
    "24_comparison": {
        "check_reaches": [("(a - b).var(ddof=1)/n)", "a.var(ddof=1)/n + b.var(ddof=1)/n)"),  # pairs taken for independent
                          ("np.sqrt((a - b).var(ddof=1)/n)", "abs(a.std() - b.std())/n**.5"),  # a difference of reaches
                          ("np.sqrt(a.var(ddof=1)/n + b.var(ddof=1)/n)", "(a.std() + b.std())/n**.5"),  # reaches added up
                          ("(a - b).var(ddof=1)/n)", "(a - b).var(ddof=1))")],              # the spread of pictures, not of their mean
        "check_alarms": [("np.abs(second - first.mean(0))", "second - first.mean(0)"),      # leads to one side only
                         ("np.abs(first[0] - first[1])", "np.abs(first[0] - first[1]).mean()"),  # the spread of seeds taken for known
                         ("first.mean(0)", "first[0]")],                                    # one of the two seeds left out
    },
    "25_ablations": {
        "check_lacking": [("torch.where(m_sum > 0, k*k/m_sum, 0.)", "k*k/m_sum"),           # 0/0
                          ("k*k/m_sum", "(k*k/m_sum[m_sum > 0]).mean()"),                   # one factor for all places
                          ("k*k/m_sum", 'partial_conv2d(m*0 + 1, m*0 + 1, window, padding=k//2, formula="raw")[0]/m_sum')],  # beyond the picture not counted
        "check_pulls": [("hole/(1 - known), valid/known", "hole, valid"),                   # the area doesn't matter
                        ("hole/(1 - known), valid/known", "hole/known, valid/(1 - known)"),  # the other one's area
                        ("hole/(1 - known), valid/known", "hole*(1 - known), valid*known")],  # a larger area pulls more
    },
}


def cells(chapter): return json.loads((NBS/f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]


def text(cell): return "".join(cell["source"])


def only_imports(code):
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(code).body)


def after(chapter, heading):
    "Cells from a heading of the second level to the next one."
    found, inside = [], False
    for c in cells(chapter):
        if c["cell_type"] == "markdown" and (heads := re.findall(r"^## (.+)$", text(c), re.M)): inside = heads[-1] == heading
        if inside: found.append(c)
    return found


def exports_to(chapter):
    "The module of a chapter; None for an experiment, which has none."
    m = re.search(r"^#\| default_exp ([\w.]+)", "\n".join(text(c) for c in cells(chapter) if c["cell_type"] == "code"), re.M)
    return m and m[1]


def namespace(chapter):
    "What a chapter imports and exports, and its exercises' code."
    code = [text(c) for c in cells(chapter) if c["cell_type"] == "code"]
    ns = {}
    for c in code:
        if only_imports(c): exec(c, ns)
    if home := exports_to(chapter): ns |= {k: v for k, v in vars(import_module(f"pconv_course.{home}")).items() if not k.startswith("__")}
    for c in after(chapter, "Exercises"):
        if c["cell_type"] == "code": exec(text(c), ns)
    return ns


def solutions(chapter):
    "{name of the check: solution} of a chapter, in order."
    exercises = after(chapter, "Exercises")
    checks = re.findall(r"^attempt\((\w+), (\w+)\)", "\n".join(text(c) for c in exercises if c["cell_type"] == "code"), re.M)
    found = re.findall(r"<summary>Solution</summary>\n\n```python\n(.*?)```", "\n".join(map(text, exercises)), re.S)
    assert len(checks) == len(found) >= (3 if exports_to(chapter) else 1)
    return {check: (name, code) for (check, name), code in zip(checks, found)}


def answer(ns, name, code):
    mine = dict(ns)
    exec(code, mine)
    return mine[name]


@pytest.mark.parametrize("chapter", WRONG)
def test_solutions_pass_and_wrong_answers_fail(chapter):
    ns, found = namespace(chapter), solutions(chapter)
    assert set(found) == set(WRONG[chapter])
    for check, (name, code) in found.items():
        assert ns["attempt"](ns[check], ns[name]) == "not written yet", check
        ns[check](answer(ns, name, code))
        assert len(WRONG[chapter][check]) >= 3
        for old, new in WRONG[chapter][check]:
            assert code.count(old) == 1, (check, old)
            wrong = answer(ns, name, code.replace(old, new))
            assert ns["attempt"](ns[check], wrong).startswith("not yet: "), f"{check} lets {new!r} for {old!r} pass"


QUESTIONS_ONLY = ["26_ledger"]


@pytest.mark.parametrize("chapter", [*WRONG, *QUESTIONS_ONLY])
def test_every_exercise_has_a_hint_and_every_chapter_five_quick_questions(chapter):
    folds = "\n".join(text(c) for c in after(chapter, "Exercises"))
    assert folds.count("<summary>Hint</summary>") == (len(solutions(chapter)) if chapter in WRONG else 0)
    quick = "\n".join(text(c) for c in after(chapter, "Quick questions"))
    assert quick.count("<summary>Answer</summary>") == len(re.findall(r"^\*\*\d\. ", quick, re.M)) == 5
